"""Lines of metrics as Prometheus gauges, through the agent that Ray runs on every node: part of the rim."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

PREFIX = "actnetformer_"
"""Of every name; Ray puts ``ray_`` before it."""


class Gauges:
    """One gauge for each kind of metric; ``mask_rate/A_to_B`` is mask_rate with the tag ``of`` = A_to_B."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Set all gauges; ``signatures`` becomes the number of signatures of failure that hold."""
        for (name, of), value in gauges_of(line).items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description=name.replace("_", " "), tag_keys=("run", "of"))
            self._gauges[name].set(value, tags={"run": self._run, "of": of})


def gauges_of(line: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """(name, tag) -> number, for what is one in a line."""
    found = {}
    for key, value in {**line, "signatures": len(line.get("signatures", ()))}.items():
        head, _, tail = key.partition("/")
        if isinstance(value, int | float):
            found[PREFIX + re.sub(r"\W", "_", head), tail] = float(value)
    return found
