"""What the report's page says, as plain values for its template: sentences, caveats and small tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import confusion_matrix, mean_and_sd, predicted_classes
from pipeline.studies.comparison import BASELINE, Gain, Group, gains
from pipeline.studies.runs import VIEWS, Run
from pipeline.studies.table import signed

NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Headline:
    """What was asked, and what came out."""

    title: str
    question: str
    answer: str


def headline(groups: Sequence[Group]) -> Headline:
    """The page's first sentences: the gain where there is a baseline, else the accuracy."""
    found = gains(groups)
    if found:
        return _gain_headline(max(found, key=lambda gain: gain.mean("mean").mean))
    if len(groups) == 1:
        return _single_headline(groups[0])
    title = " and ".join(group.label for group in groups) if len(groups) < 3 else f"{len(groups)} settings compared"
    evaluated = [group for group in groups if group.top1("mean")]
    question = "How many of the test videos are recognized?"
    if not evaluated:
        return Headline(title, question, "Not known yet: no run was evaluated.")
    parts = [f"{group.label} {_percent(group, 'mean')}" for group in evaluated[:6]]
    rest = f"; and {len(evaluated) - 6} more below" if len(evaluated) > 6 else ""
    return Headline(title, question, f"By the mean of both students: {'; '.join(parts)}{rest}.")


def _single_headline(group: Group) -> Headline:
    question = "How many of the test videos are recognized?"
    if group.top1("mean") is None:
        return Headline(group.label, question, "Not known yet: the run was not evaluated.")
    videos = next(run.evaluation["videos"] for run in group.runs if run.evaluation)
    return Headline(
        group.label,
        question,
        f"{_percent(group, 'mean')} of {videos:,} by the mean of both students; "
        f"{_percent(group, 'primary')} by the primary, {_percent(group, 'auxiliary')} by the auxiliary alone.",
    )


def _percent(group: Group, view: str) -> str:
    """``71.2 ± 1.1 % (3 seeds)`` with spaces that do not break."""
    value = group.top1(view)
    if value is None:
        return "unknown"
    spread = "" if value.sd is None else f"{NBSP}±{NBSP}{value.sd:.1f}"
    return f"{value.mean:.1f}{spread}{NBSP}%" + (f" ({value.n}{NBSP}seeds)" if value.n > 1 else "")


def _gain_headline(gain: Gain) -> Headline:
    points = gain.mean("mean")
    spread = "" if points.sd is None else f"{NBSP}±{NBSP}{points.sd:.1f}"
    seeds = f"{points.n} seed{'s' * (points.n > 1)}"
    ours, theirs = (mean_and_sd([run.top1("mean") or 0.0 for run in group.runs if run.seed in gain.by_seed]).mean
                    for group in (gain.group, gain.baseline))  # fmt: skip
    ahead = sum(values["mean"] > 0 for values in gain.by_seed.values())
    counted = f", ahead in {ahead} of {points.n}" if points.n > 1 else ""
    return Headline(
        f"{gain.group.label} against {BASELINE}",
        f"What does {gain.group.label} gain over training on the labeled videos alone, with the same videos, labels and seeds?",
        f"{signed(points.mean)}{spread} percentage points of top-1 ({seeds}{counted}): "
        f"{ours:.1f}{NBSP}% against {theirs:.1f}{NBSP}% for the mean of both students.",
    )


def caveats(groups: Sequence[Group]) -> list[str]:
    """What a careful reader would ask about the numbers."""
    notes = []
    sizes = sorted({run.evaluation["videos"] for group in groups for run in group.runs if run.evaluation.get("videos")})
    if len(sizes) > 1:
        notes.append(f"The runs were tested on different numbers of videos: {', '.join(map(str, sizes))}.")
    runs = [run for group in groups for run in group.runs]
    if held := [run.name for run in runs if run.evaluation.get("split", "test") != "test"]:
        notes.append(f"Evaluated on validation videos, wherever this page says test: {', '.join(held)}.")
    if sizes and sizes[0] < 1000:
        notes.append(f"With {sizes[0]} test videos, one video more or less is {100 / sizes[0]:.1f} points.")
    for group in groups:
        twice = [seed for seed, n in Counter(run.seed for run in group.runs).items() if n > 1]
        if twice:
            notes.append(f"{group.label}: several runs have seed {twice[0]}; they are counted as if they were independent.")
    for gain in gains(groups):
        notes += [f"{gain.group.label} and {BASELINE} also differ in {what}." for what in gain.differences]
        if left := [run.name for run in gain.group.runs if run.seed not in gain.by_seed]:
            notes.append(f"No gain for {', '.join(left)}: no evaluated {BASELINE} run has the same seed, labels and videos.")
    if any(group.top1("mean") for group in groups) and all(len(group.runs) == 1 for group in groups):
        notes.append("One seed of each setting: how far another seed would land is unknown.")
    return notes


def per_class_table(groups: Sequence[Group]) -> tuple[list[str], list[tuple[str, str, list[float | None]]]]:
    """(column names, rows of class, number of test videos, accuracies in percent); no rows without an evaluation.

    One group: a column for each student and their mean. Several: the mean of the students, averaged over the seeds.
    """
    evaluated = [group for group in groups if group.top1("mean")]
    if not evaluated:
        return [], []
    columns = [(view, evaluated[0], view) for view in VIEWS]
    if len(evaluated) > 1:
        columns = [(group.label, group, "mean") for group in evaluated]
    classes = next(run for run in evaluated[0].runs if run.evaluation).evaluation["classes"]
    totals = _class_totals(evaluated, classes)
    values = {name: [_class_accuracy(group, view, name) for _, group, view in columns] for name in classes}
    return [name for name, _, _ in columns], [(name, totals.get(name, ""), values[name]) for name in classes]


def confusion(group: Group) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Counts of the students' mean, summed over the group's runs with the same classes, and the classes."""
    found = [run.predictions for run in group.runs if run.predictions is not None]
    found = [predictions for predictions in found if predictions.classes == found[0].classes]
    if not found:
        return None
    matrices = [confusion_matrix(p.labels, predicted_classes(p.scores["mean"]), len(p.classes)) for p in found]
    return np.sum(matrices, axis=0), found[0].classes


def most_confused(counts: NDArray[np.int64], classes: Sequence[str], limit: int = 8) -> list[tuple[str, str, int, int]]:
    """(true, predicted, count, videos of the true class) of the largest errors."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    cells = [divmod(int(cell), len(classes)) for cell in order]
    return [(classes[a], classes[b], int(wrong[a, b]), int(counts[a].sum())) for a, b in cells if wrong[a, b]]


def quarantined(runs: Sequence[Run], limit: int = 50) -> tuple[list[tuple[str, str, str, int]], int]:
    """Rows of (run, video, reason, times), the most frequent first, and how many rows were left off."""
    records = [(run.name, record) for run in runs for record in run.quarantine]
    counted = Counter((name, str(record.get("uri", "?")), str(record.get("reason", "?"))) for name, record in records)
    rows = [(*key, times) for key, times in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    return rows[:limit], max(len(rows) - limit, 0)


def _class_totals(groups: Sequence[Group], classes: Sequence[str]) -> dict[str, str]:
    found = next((run.predictions for group in groups for run in group.runs if run.predictions is not None), None)
    if found is None or list(found.classes) != list(classes):
        return {}
    counts = np.bincount(found.labels[found.labels >= 0], minlength=len(classes))
    return {name: f"{count:,}" for name, count in zip(classes, counts, strict=True)}


def _class_accuracy(group: Group, view: str, name: str) -> float | None:
    shares = [(run.evaluation.get(view) or {}).get("per_class", {}).get(name) for run in group.runs]
    known = [100 * share for share in shares if share is not None]
    return mean_and_sd(known).mean if known else None
