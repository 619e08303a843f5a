"""Shows the newest line of metrics as Prometheus gauges, through the agent that Ray runs on every node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

PREFIX = "actnetformer_"
"""What every gauge's name begins with; Ray puts ``ray_`` before it."""


class Gauges:
    """Keeps one gauge for each kind of metric; ``mask_rate/A_to_B`` is the gauge mask_rate with the tag ``of`` = A_to_B."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Sets all gauges; ``signatures`` becomes the number of signatures of failure that hold."""
        for (name, of), value in select_gauges(line).items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description=name.replace("_", " "), tag_keys=("run", "of"))
            self._gauges[name].set(value, tags={"run": self._run, "of": of})


def select_gauges(line: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Maps (name, tag) to the number, for every value of a line that is a number."""
    gauges = {}
    for key, value in {**line, "signatures": len(line.get("signatures", ()))}.items():
        head, _, tail = key.partition("/")
        if isinstance(value, int | float):
            gauges[PREFIX + re.sub(r"\W", "_", head), tail] = float(value)
    return gauges
