"""Which curves the report shows, and the points of each: thinned, over seeds, gaps kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.comparison import Group
from pipeline.analysis.run_reader import Run

MAX_POINTS = 400
"""Points of one curve: more than its pixels would only make the page heavy."""
MAX_POINTS_OF_PANEL = 4000
"""Points of all curves of a panel, which has 17 neighbors: 8 settings with 3 seeds would else be 5 MB."""
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One small plot: a quantity, its unit, and the metrics that are its lines."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    """(role, key in metrics.jsonl); the role is empty where there is one line only. Every second one is dashed."""
    scale: float = 1.0
    """Factor from the file's unit to the shown one."""
    limits: tuple[float | None, float | None] = (0, None)
    """Ends of the y axis; None: as the data."""
    x_label: str = "optimizer step"
    x_limits: tuple[float, float] | None = None
    """Ends of the x axis; None: from 0 to the last step of all runs."""
    mark: float | None = None
    """Where a thin upright line is drawn."""


def _students(key: str) -> tuple[tuple[str, str], ...]:
    return tuple((student, f"{key}/{student}") for student in ("primary", "auxiliary"))


def _directions(key: str) -> tuple[tuple[str, str], ...]:
    """Who labels whom, by the run's label source; a run has one source, so one pair of lines."""
    sources = {
        "primary →\nauxiliary": "primary_to_auxiliary", "auxiliary →\nprimary": "auxiliary_to_primary",
        "auxiliary →\nitself": "auxiliary_to_auxiliary", "primary →\nitself": "primary_to_primary",
        "mean →\nauxiliary": "mean_to_auxiliary", "mean →\nprimary": "mean_to_primary",
        "its average →\nauxiliary": "auxiliary_ema_to_auxiliary", "its average →\nprimary": "primary_ema_to_primary",
    }  # fmt: skip
    return tuple((role, f"{key}/{direction}") for role, direction in sources.items())


PANELS = (
    Panel("Total loss", "loss", (("", "loss"),)),
    Panel("Supervised loss", "cross-entropy, nats", _students("supervised_loss")),
    Panel("Pseudo-label loss", "cross-entropy, nats", _students("pseudo_label_loss")),
    Panel("Contrast loss", "nats", (("", "contrast_loss"),), limits=(None, None)),
    Panel("Contrast of fast and slow", "nats", _students("contrast_loss"), limits=(None, None)),
    Panel("Contrast of pseudo-classes", "nats", _students("group_contrast_loss"), limits=(None, None)),
    Panel("Alignment loss", "1 - cosine", (("", "alignment_loss"),)),
    Panel("Loss of mixed clips", "squared error", _students("mix_loss")),
    Panel("Pseudo-labels kept", "% of unlabeled clips", _directions("mask_rate"), 100, (0, 100)),
    Panel("Pseudo-labels right", "% of those kept", _directions("pseudo_label_accuracy"), 100, (0, 100)),
    Panel("Threshold, where it moves", "% confidence", _directions("threshold"), 100, (0, 100)),
    Panel("Accuracy on weak views", "% of unlabeled clips", _students("weak_accuracy"), 100, (0, 100)),
    Panel("Agreement of the students", "% of unlabeled clips", (("", "agreement"),), 100, (0, 100)),
    Panel("Alignment of the students", "mean cosine", (("same video", "alignment/same"), ("different", "alignment/different")),
          limits=(None, 1)),
    Panel("Gradient norm", "before clipping", _students("gradient_norm")),
    Panel("Learning rate", "per step", _students("lr")),
    Panel("Throughput", "clips per second", (("", "clips_per_second"),)),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One line of a panel: its seeds, and their mean where there are several."""

    group: int
    """Index of the group: the color."""
    role: str
    dashed: bool
    """Whether this is the panel's second role."""
    seeds: tuple[Points, ...]
    """Each [n, 2]: step, value in the panel's unit; NaN where the metric is null."""
    mean: Points
    """[n, 2], over the seeds that reached the step."""


def curves(panel: Panel, groups: Sequence[Group]) -> list[Curve]:
    """Every line of the panel that has at least one finite value."""
    drawn = []
    for index, group in enumerate(groups):
        for number, (role, key) in enumerate(panel.lines):
            seeds = [points for run in group.runs if (points := _points(run, key, panel.scale)) is not None]
            if seeds:
                drawn.append((index, role, number % 2 == 1, seeds))
    lines = sum(1 + len(seeds) * (len(seeds) > 1) for *_, seeds in drawn)
    limit = max(40, min(MAX_POINTS, MAX_POINTS_OF_PANEL // max(lines, 1)))
    return [
        Curve(index, role, dashed, tuple(thin(points, limit) for points in seeds), thin(_mean(seeds), limit))
        for index, role, dashed, seeds in drawn
    ]


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most ``limit`` points, each the mean of as many neighbors; a bin without a finite value stays a gap."""
    bins = np.array_split(points, min(limit, len(points)))
    return np.array([[part[:, 0].mean(), _finite_mean(part[:, 1])] for part in bins])


def _points(run: Run, key: str, scale: float) -> Points | None:
    pairs = [(line["step"], _number(line, key) * scale) for line in run.lines if key in line]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array if np.isfinite(array[:, 1]).any() else None


def _number(line: Mapping[str, Any], key: str) -> float:
    value = line[key]
    return float(value) if isinstance(value, int | float) else float("nan")


def _mean(seeds: Sequence[Points]) -> Points:
    stacked = np.concatenate(seeds)
    steps, which = np.unique(stacked[:, 0], return_inverse=True)
    finite = np.isfinite(stacked[:, 1])
    counts = np.bincount(which[finite], minlength=len(steps))
    sums = np.bincount(which[finite], weights=stacked[finite, 1], minlength=len(steps))
    return np.stack([steps, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)], axis=1)


def _finite_mean(values: Points) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
