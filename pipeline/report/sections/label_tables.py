"""What is shown of the quality of pseudo-labels: a CSV of all counts, curves, small tables, and one sentence."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.analysis.curves import Curve, Panel
from pipeline.analysis.label_quality import (
    FILE,
    SOURCES,
    THRESHOLDS,
    LabelCounts,
    SavedScores,
    SourceComparison,
    Thresholds,
    count_labels,
    divide,
    find_labeler,
    split_training_time,
)
from pipeline.config import STUDENTS
from pipeline.manifest.schema import OTHER_CLASS
from pipeline.report.parts.tables import Cell, Table, format_signed

SHOWN_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""The thresholds of the table; the CSV has all 50."""
FEWEST = 10
"""A curve shows the accuracy of no fewer labels than these."""
EACH_LABELER = (
    ("primary", "primary", "self"), ("auxiliary", "auxiliary", "self"), ("mean", "primary", "mean"), (FILE, "primary", FILE)
)  # fmt: skip
"""(labeler, a learner and a source for which it gives the labels)."""
OTHERS = "none of the classes"
"""The name of what videos with the label ``OTHER_CLASS`` show."""

FIELDS = (
    "first_step", "last_step", "learner", "source", "labeler", "threshold", "class",
    "videos", "kept", "known", "right", "coverage", "accuracy", "differing", "differing_right",
)  # fmt: skip


def format_counts_csv(scores: SavedScores, own_thresholds: Thresholds, classes: Sequence[str]) -> str:
    """Formats all counts as CSV with the columns ``FIELDS``.

    All training time is listed by class at every threshold. Each part of it is listed as a sum at every threshold, and by
    class at the threshold with which its labeler was trained. The column ``class`` is the true class; ``all`` includes the
    clips of unknown class, and ``none of the classes`` is there if some clips show none.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    thresholds = sorted({*THRESHOLDS, *own_thresholds.values()})
    all_time = (int(scores.steps.min()), int(scores.steps.max()), scores)
    for first, last, part in [all_time, *split_training_time(scores)]:
        for learner in STUDENTS:
            for source in scores.sources:
                counts, labeler = count_labels(part, learner, source, thresholds), find_labeler(learner, source)
                for index, threshold in enumerate(thresholds):
                    names = classes if part is scores or threshold == own_thresholds[labeler] else ()
                    head = (first, last, learner, source, labeler, threshold)
                    writer.writerows((*head, *row) for row in _list_counts(counts, index, names))
    return text.getvalue()


def _list_counts(counts: LabelCounts, index: int, classes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    every = np.arange(len(counts.clips))
    others = {OTHERS: every[[OTHER_CLASS]]} if classes and counts.clips[OTHER_CLASS] else {}
    for name, rows in {"all": every, **{name: every[[k]] for k, name in enumerate(classes)}, **others}.items():
        known = rows[rows < len(every) + OTHER_CLASS]
        videos, kept = int(counts.clips[rows].sum()), int(counts.kept[rows, index].sum())
        labeled, right = int(counts.kept[known, index].sum()), int(counts.right[rows, index].sum())
        shares = (round(kept / videos, 6) if videos else "", round(right / labeled, 6) if labeled else "")
        differing = (int(counts.differing[known, index].sum()), int(counts.differing_right[rows, index].sum()))
        yield (name, videos, kept, labeled, right, *shares, *differing)


def describe_comparison(comparison: SourceComparison) -> str:
    """Says in one or two sentences what the labels from the other student were worth to a learner."""
    cross, own = (_format_percent(comparison.accuracy[source]) for source in ("cross", "self"))
    other, at = find_labeler(comparison.learner, "cross"), comparison.thresholds
    own_at = "" if at[other] == at[comparison.learner] else f" at {at[comparison.learner]:.3g}"
    text = (
        f"At {at[other]:.3g} the {other} labels {_format_percent(comparison.coverage['cross'])} of the clips, "
        f"{cross} of them right; the {comparison.learner}’s own labels{own_at} would be "
        f"{_format_percent(comparison.coverage['self'])} and {own}"
    )
    if comparison.difference is not None:
        low, high = (100 * end for end in comparison.difference)
        text += f": {format_signed(100 * (comparison.accuracy['cross'] - comparison.accuracy['self']))} points"
        text += f" [95 % over videos: {format_signed(low)} to {format_signed(high)}]"
        text += "" if low > 0 or high < 0 else ", not distinguishable"
    text += f". As many of its own most confident labels would be {_format_percent(comparison.self_at_equal_coverage)} right."
    if comparison.differing_share > 0:
        text += f" {_format_percent(comparison.differing_share)} of the kept labels are not what it says itself"
        text += f"; {_format_percent(comparison.differing_accuracy)} of those are right."
    if comparison.other_share > 0:
        text += f" {_format_percent(comparison.other_share)} of the kept labels are of videos that show none of the classes."
    if FILE in comparison.coverage:
        text += f" At {at[FILE]:.3g} the file labels {_format_percent(comparison.coverage[FILE])} of the clips, "
        text += f"{_format_percent(comparison.accuracy[FILE])} of them right."
    return text


def _format_percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def build_thresholds_table(scores: SavedScores, own_thresholds: Thresholds) -> Table:
    """Builds a table with a row for each learner, source and shown threshold, over all training time.

    Where some clips show none of the classes, two columns more say which share of the kept labels is theirs, and which share of
    them has a kept label.
    """
    has_others = bool((scores.labels == OTHER_CLASS).any())
    thresholds = sorted({*SHOWN_THRESHOLDS, *own_thresholds.values()})
    rows = []
    for learner in STUDENTS:
        for source in scores.sources:
            counts = count_labels(scores, learner, source, thresholds)
            by = source if source in ("mean", FILE) else f"{source} ({find_labeler(learner, source)})"
            columns_of_shares = (
                counts.compute_coverage(), counts.compute_accuracy(),
                counts.compute_differing_share(), counts.compute_differing_accuracy(),
                *((counts.compute_other_share(), counts.compute_other_coverage()) if has_others else ()),
            )  # fmt: skip
            for threshold, *shares in zip(thresholds, *columns_of_shares, strict=True):
                cells = (Cell(f"{threshold:.3g}", threshold), *(_format_share_cell(share) for share in shares))
                rows.append((Cell(learner, learner), Cell(by, source), *cells))
    columns: tuple[str, ...] = (
        "learner", "labeled by", "threshold", "coverage %", "accuracy %", "differing %", "of them right %",
    )  # fmt: skip
    caption = (
        "Coverage: kept labels among all unlabeled clips. Accuracy: right ones among the kept. Differing: kept labels that are "
        "not the learner’s own class."
    )
    if has_others:
        columns += ("on none %", "of none kept %")
        caption += (
            " On none: kept labels on videos that show none of the classes; these are left out of accuracy and differing. "
            "Of none kept: such videos whose label is kept."
        )
    return Table(columns, (False, False, *(True for _ in columns[2:])), tuple(rows), caption)


def build_classes_table(scores: SavedScores, own_thresholds: Thresholds, classes: Sequence[str]) -> Table:
    """Builds a table of each true class: the coverage and accuracy of each labeler at its threshold in training."""
    counts = {
        labeler: count_labels(scores, learner, source, [own_thresholds[labeler]])
        for labeler, learner, source in EACH_LABELER
        if source in scores.sources
    }
    rows = []
    has_others = bool((scores.labels == OTHER_CLASS).any())
    for index, name in [*enumerate(classes), *([(OTHER_CLASS, OTHERS)] if has_others else [])]:
        clips = int(counts["mean"].clips[index])
        cells = [
            _format_share_cell(float(part))
            for count in counts.values()
            for part in (divide(count.kept[index, 0], clips), divide(count.right[index, 0], count.kept[index, 0]))
        ]
        rows.append((Cell(name, name), Cell(f"{clips:,}", clips), *cells))
    columns = ("true class", "clips", *(f"{labeler}: {what} %" for labeler in counts for what in ("kept", "right")))
    caption = (
        f"At {_format_thresholds(own_thresholds)}, over all training time. The primary’s labels teach the auxiliary as cross "
        "labels, and itself as self labels."
    )
    return Table(columns, (False, *(True for _ in columns[1:])), tuple(rows), caption)


def _format_thresholds(own_thresholds: Thresholds) -> str:
    """Returns ``0.8``, or the threshold of each labeler if they differ."""
    each = [f"{limit:.3g} ({who})" for who, limit in own_thresholds.items()]
    return ", ".join(each) if len(set(own_thresholds.values())) > 1 else f"{own_thresholds['mean']:.3g}"


def _format_share_cell(value: float) -> Cell:
    return Cell("–") if np.isnan(value) else Cell(f"{100 * value:.1f}", 100 * value)


def build_panels(scores: SavedScores, learner: str, own_thresholds: Thresholds) -> list[tuple[Panel, list[Curve]]]:
    """Builds the curves of one learner, with a line for each source.

    They show accuracy and coverage over the threshold, accuracy over coverage, and both over the training time at the
    thresholds with which the labelers were trained.
    """
    all_time = {source: count_labels(scores, learner, source) for source in scores.sources}
    grid = np.array(THRESHOLDS)
    parts = split_training_time(scores)
    times = np.array([(first + last) / 2 for first, last, _ in parts])
    at = {source: own_thresholds[find_labeler(learner, source)] for source in scores.sources}
    over_time = {source: [count_labels(part, learner, source, [at[source]]) for *_, part in parts] for source in scores.sources}
    threshold = f"{at['cross']:.3g}" if len(set(at.values())) == 1 else "its threshold"
    full_range: Any = {"limits": (0, 100)}
    upper_range: Any = {"limits": (None, 100)}
    over_threshold: Any = {"x_label": "threshold", "x_limits": (0.5, 1.0), "mark": at["cross"]}
    drawn: list[tuple[Panel, dict[str, tuple[Any, Any]]]] = [
        (Panel("Accuracy over the threshold", "% of kept labels", (), **upper_range, **over_threshold),
         {source: (grid, _select_accuracies([counts])) for source, counts in all_time.items()}),
        (Panel("Coverage over the threshold", "% of clips", (), **full_range, **over_threshold),
         {source: (grid, counts.compute_coverage()) for source, counts in all_time.items()}),
        (Panel("Accuracy over coverage", "% of kept labels", (), **upper_range, x_label="coverage, %", x_limits=(0, 100)),
         {source: (100 * counts.compute_coverage(), _select_accuracies([counts])) for source, counts in all_time.items()}),
        (Panel(f"Accuracy at {threshold} over time", "% of kept labels", (), **upper_range),
         {source: (times, _select_accuracies(counts)) for source, counts in over_time.items()}),
        (Panel(f"Coverage at {threshold} over time", "% of clips", (), **full_range),
         {source: (times, np.array([part.compute_coverage()[0] for part in counts])) for source, counts in over_time.items()}),
    ]  # fmt: skip
    return [(panel, lines) for panel, series in drawn if (lines := _build_lines(series))]


def _select_accuracies(counts: Sequence[LabelCounts]) -> Any:
    """Returns the accuracies; NaN for those of fewer than ``FEWEST`` labels."""
    kept = np.concatenate([part.kept[:OTHER_CLASS].sum(axis=0) for part in counts])
    return np.where(kept >= FEWEST, np.concatenate([part.compute_accuracy() for part in counts]), np.nan)


def _build_lines(series: dict[str, tuple[Any, Any]]) -> list[Curve]:
    points = {source: np.stack([x, 100 * y], axis=1) for source, (x, y) in series.items()}
    known = {source: line for source, line in points.items() if np.isfinite(line[:, 1]).any()}
    return [Curve(SOURCES.index(source), "", source == "mean", (), line) for source, line in known.items()]
