"""Which training curves the report shows, and their points, which are thinned and averaged over seeds; gaps remain gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.comparison import Group
from pipeline.analysis.records.run_record import RunRecord

MAX_POINTS = 400
"""The number of points of one curve at most: more than its pixels would only make the page large."""
MAX_POINTS_OF_PANEL = 4000
"""The number of points of all curves of a panel at most. A page has 17 panels: with 8 settings of 3 seeds it would else have 5
MB."""
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One small plot: a quantity, its unit, and the metrics that are its lines."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    """Pairs of a role and a key in metrics.jsonl. The role is empty if there is only one line. Every second line is dashed."""
    scale: float = 1.0
    """The factor from the file's unit to the unit that is shown."""
    limits: tuple[float | None, float | None] = (0, None)
    """The ends of the y axis; None for an end that the data determines."""
    x_label: str = "optimizer step"
    x_limits: tuple[float, float] | None = None
    """The ends of the x axis; None for 0 and the last step of all runs."""
    mark: float | None = None
    """The x value at which a thin vertical line is drawn, if any."""


def _name_student_lines(key: str) -> tuple[tuple[str, str], ...]:
    return tuple((student, f"{key}/{student}") for student in ("primary", "auxiliary"))


def _name_direction_lines(key: str) -> tuple[tuple[str, str], ...]:
    """The lines of a metric by which student labels which; a run has one label source, so it has one pair of these lines."""
    sources = {
        "primary →\nauxiliary": "primary_to_auxiliary", "auxiliary →\nprimary": "auxiliary_to_primary",
        "auxiliary →\nitself": "auxiliary_to_auxiliary", "primary →\nitself": "primary_to_primary",
        "mean →\nauxiliary": "mean_to_auxiliary", "mean →\nprimary": "mean_to_primary",
        "its average →\nauxiliary": "auxiliary_ema_to_auxiliary", "its average →\nprimary": "primary_ema_to_primary",
    }  # fmt: skip
    return tuple((role, f"{key}/{direction}") for role, direction in sources.items())


PANELS = (
    Panel("Total loss", "loss", (("", "loss"),)),
    Panel("Supervised loss", "cross-entropy, nats", _name_student_lines("supervised_loss")),
    Panel("Pseudo-label loss", "cross-entropy, nats", _name_student_lines("pseudo_label_loss")),
    Panel("Contrast loss", "nats", (("", "contrast_loss"),), limits=(None, None)),
    Panel("Contrast of fast and slow", "nats", _name_student_lines("contrast_loss"), limits=(None, None)),
    Panel("Contrast of pseudo-classes", "nats", _name_student_lines("group_contrast_loss"), limits=(None, None)),
    Panel("Alignment loss", "1 - cosine", (("", "alignment_loss"),)),
    Panel("Loss of mixed clips", "squared error", _name_student_lines("mix_loss")),
    Panel("Pseudo-labels kept", "% of unlabeled clips", _name_direction_lines("mask_rate"), 100, (0, 100)),
    Panel("Pseudo-labels right", "% of those kept", _name_direction_lines("pseudo_label_accuracy"), 100, (0, 100)),
    Panel("Threshold, where it moves", "% confidence", _name_direction_lines("threshold"), 100, (0, 100)),
    Panel("Accuracy on weak views", "% of unlabeled clips", _name_student_lines("weak_accuracy"), 100, (0, 100)),
    Panel("Agreement of the students", "% of unlabeled clips", (("", "agreement"),), 100, (0, 100)),
    Panel("Alignment of the students", "mean cosine", (("same video", "alignment/same"), ("different", "alignment/different")),
          limits=(None, 1)),
    Panel("Gradient norm", "before clipping", _name_student_lines("gradient_norm")),
    Panel("Learning rate", "per step", _name_student_lines("lr")),
    Panel("Throughput", "clips per second", (("", "clips_per_second"),)),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One line of a panel: the curve of each seed, and their mean."""

    group: int
    """The index of the group, which determines the color."""
    role: str
    dashed: bool
    """Whether this is the second role of the panel."""
    seeds: tuple[Points, ...]
    """For each seed [n, 2]: the step, and the value in the panel's unit, which is NaN where the metric is null."""
    mean: Points
    """[n, 2]: the step, and the mean over the seeds that reached it."""


def build_curves(panel: Panel, groups: Sequence[Group]) -> list[Curve]:
    """Builds every line of the panel that has at least one finite value."""
    drawn = []
    for index, group in enumerate(groups):
        for number, (role, key) in enumerate(panel.lines):
            seeds = [points for run in group.runs if (points := _read_points(run, key, panel.scale)) is not None]
            if seeds:
                drawn.append((index, role, number % 2 == 1, seeds))
    lines = sum(1 + len(seeds) * (len(seeds) > 1) for *_, seeds in drawn)
    limit = max(40, min(MAX_POINTS, MAX_POINTS_OF_PANEL // max(lines, 1)))
    return [
        Curve(index, role, dashed, tuple(thin_points(seed, limit) for seed in seeds), thin_points(_average_seeds(seeds), limit))
        for index, role, dashed, seeds in drawn
    ]


def thin_points(points: Points, limit: int = MAX_POINTS) -> Points:
    """Replaces points [n, 2] by at most ``limit`` ones, each the mean of equally many neighbors; a bin without finite values
    is NaN."""
    bins = np.array_split(points, min(limit, len(points)))
    return np.array([[part[:, 0].mean(), _compute_finite_mean(part[:, 1])] for part in bins])


def _read_points(run: RunRecord, key: str, scale: float) -> Points | None:
    pairs = [(line["step"], _read_number(line, key) * scale) for line in run.lines if key in line]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array if np.isfinite(array[:, 1]).any() else None


def _read_number(line: Mapping[str, Any], key: str) -> float:
    value = line[key]
    return float(value) if isinstance(value, int | float) else float("nan")


def _average_seeds(seeds: Sequence[Points]) -> Points:
    stacked = np.concatenate(seeds)
    steps, indices = np.unique(stacked[:, 0], return_inverse=True)
    finite = np.isfinite(stacked[:, 1])
    counts = np.bincount(indices[finite], minlength=len(steps))
    sums = np.bincount(indices[finite], weights=stacked[finite, 1], minlength=len(steps))
    return np.stack([steps, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)], axis=1)


def _compute_finite_mean(values: Points) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
