"""What benchmarks report: every ratio with its n, median and spread beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """``name``: median of above / below, one of each from every repeat, so that a drifting machine hits both alike.

    ``n``, ``median`` and ``spread``, smallest and largest, lie beside it.
    """
    assert "ratio" in name
    values = [round(one / other, 4) for one, other in zip(above, below, strict=True)]
    median = round(statistics.median(values), 4)
    return {name: median, "n": len(values), "median": median, "spread": [min(values), max(values)]}


def steady_rate(times: Sequence[float], each: int) -> float:
    """Rate after the first quarter of the arrivals, which is start-up; every arrival brings ``each``."""
    ordered = sorted(times)
    skip = len(ordered) // 4
    return (len(ordered) - 1 - skip) * each / (ordered[-1] - ordered[skip])
