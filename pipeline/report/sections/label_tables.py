"""What is shown of the quality of pseudo-labels: a CSV of all counts, curves, small tables, and one sentence."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.analysis.curves import Curve, Panel
from pipeline.analysis.label_quality import (
    SOURCES,
    STUDENTS,
    THRESHOLDS,
    Comparison,
    Said,
    Tally,
    Thresholds,
    labeler,
    share,
    tally,
    windows,
)
from pipeline.report.tables import Cell, Table, signed

SHOWN_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Of the table; the CSV has all 50."""
FEWEST = 10
"""Labels of which a curve shows the accuracy."""
EACH_LABELER = (("primary", "primary", "self"), ("auxiliary", "auxiliary", "self"), ("mean", "primary", "mean"))
"""(labeler, a learner and source that it labels)."""

FIELDS = (
    "first_step", "last_step", "learner", "source", "labeler", "threshold", "class",
    "videos", "kept", "known", "right", "coverage", "accuracy", "differing", "differing_right",
)  # fmt: skip


def as_csv(said: Said, own: Thresholds, classes: Sequence[str]) -> str:
    """``FIELDS`` and a line for each count: all training time by class at every threshold; each window in sum at every
    threshold, and by class at its labeler's ``own`` one. ``class`` is the true one; ``all`` has the unknown ones, too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    thresholds = sorted({*THRESHOLDS, *own.values()})
    whole = (int(said.steps.min()), int(said.steps.max()), said)
    for first, last, part in [whole, *windows(said)]:
        for learner in STUDENTS:
            for source in SOURCES:
                found, head = tally(part, learner, source, thresholds), (first, last, learner, source, labeler(learner, source))
                for place, threshold in enumerate(thresholds):
                    names = classes if part is said or threshold == own[head[-1]] else ()
                    writer.writerows((*head, threshold, *row) for row in _counts(found, place, names))
    return text.getvalue()


def _counts(found: Tally, place: int, classes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    every = np.arange(len(found.videos))
    for name, rows in {"all": every, **{name: every[[k]] for k, name in enumerate(classes)}}.items():
        known = rows[rows < len(every) - 1]
        videos, kept = int(found.videos[rows].sum()), int(found.kept[rows, place].sum())
        labeled, right = int(found.kept[known, place].sum()), int(found.right[rows, place].sum())
        shares = (round(kept / videos, 6) if videos else "", round(right / labeled, 6) if labeled else "")
        news = (int(found.differing[known, place].sum()), int(found.differing_right[rows, place].sum()))
        yield (name, videos, kept, labeled, right, *shares, *news)


def answer(one: Comparison) -> str:
    """What the labels from the other student were worth to a learner, in one sentence or two."""
    cross, own = (_percent(one.accuracy[source]) for source in ("cross", "self"))
    other, at = labeler(one.learner, "cross"), one.thresholds
    own_at = "" if at[other] == at[one.learner] else f" at {at[one.learner]:.3g}"
    text = (
        f"At {at[other]:.3g} the {other} labels {_percent(one.coverage['cross'])} of the clips, "
        f"{cross} of them right; the {one.learner}’s own labels{own_at} would be {_percent(one.coverage['self'])} and {own}"
    )
    if one.difference is not None:
        low, high = (100 * end for end in one.difference)
        text += f": {signed(100 * (one.accuracy['cross'] - one.accuracy['self']))} points"
        text += f" [95 % over videos: {signed(low)} to {signed(high)}]"
        text += "" if low > 0 or high < 0 else ", not distinguishable"
    text += f". As many of its own most confident labels would be {_percent(one.self_at_equal_coverage)} right."
    if one.news > 0:
        text += f" {_percent(one.news)} of the kept labels are not what it says itself"
        text += f"; {_percent(one.news_accuracy)} of those are right."
    return text


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def thresholds_table(said: Said, own: Thresholds) -> Table:
    """A row for each learner, source and some thresholds, over all training time."""
    thresholds = sorted({*SHOWN_THRESHOLDS, *own.values()})
    rows = []
    for learner in STUDENTS:
        for source in SOURCES:
            found = tally(said, learner, source, thresholds)
            by = source if source == "mean" else f"{source} ({labeler(learner, source)})"
            shown = zip(thresholds, found.coverage(), found.accuracy(), found.news(), found.news_accuracy(), strict=True)
            for threshold, *shares in shown:
                cells = (Cell(f"{threshold:.3g}", threshold), *(_share(share) for share in shares))
                rows.append((Cell(learner, learner), Cell(by, source), *cells))
    columns = ("learner", "labeled by", "threshold", "coverage %", "accuracy %", "differing %", "of them right %")
    caption = (
        "Coverage: kept labels among all unlabeled clips. Accuracy: right ones among the kept. Differing: kept labels that are "
        "not the learner’s own class."
    )
    return Table(columns, (False, False, True, True, True, True, True), tuple(rows), caption)


def classes_table(said: Said, own: Thresholds, classes: Sequence[str]) -> Table:
    """A row for each true class: coverage and accuracy of each labeler at its threshold in training."""
    found = {who: tally(said, learner, source, [own[who]]) for who, learner, source in EACH_LABELER}
    rows = []
    for place, name in enumerate(classes):
        clips = int(found["mean"].videos[place])
        cells = [
            _share(float(part))
            for one in found.values()
            for part in (share(one.kept[place, 0], clips), share(one.right[place, 0], one.kept[place, 0]))
        ]
        rows.append((Cell(name, name), Cell(f"{clips:,}", clips), *cells))
    columns = ("true class", "clips", *(f"{who}: {what} %" for who in found for what in ("kept", "right")))
    caption = (
        f"At {_at(own)}, over all training time. The primary’s labels teach the auxiliary as cross labels, and "
        "itself as self labels."
    )
    return Table(columns, (False, *(True for _ in columns[1:])), tuple(rows), caption)


def _at(own: Thresholds) -> str:
    """``0.8``, or that of each labeler."""
    each = [f"{own[who]:.3g} ({who})" for who in (*STUDENTS, "mean")]
    return ", ".join(each) if len(set(own.values())) > 1 else f"{own['mean']:.3g}"


def _share(value: float) -> Cell:
    return Cell("–") if np.isnan(value) else Cell(f"{100 * value:.1f}", 100 * value)


def panels(said: Said, learner: str, own: Thresholds) -> list[tuple[Panel, list[Curve]]]:
    """Curves of one learner, a line for each source: accuracy and coverage over the threshold, one over the other, and both
    over training time at each labeler's threshold in training."""
    whole = {source: tally(said, learner, source) for source in SOURCES}
    grid = np.array(THRESHOLDS)
    parts = windows(said)
    times = np.array([(first + last) / 2 for first, last, _ in parts])
    at = {source: own[labeler(learner, source)] for source in SOURCES}
    over_time = {source: [tally(part, learner, source, [at[source]]) for *_, part in parts] for source in SOURCES}
    word = f"{at['cross']:.3g}" if len(set(at.values())) == 1 else "its threshold"
    percent: Any = {"limits": (0, 100)}
    high: Any = {"limits": (None, 100)}
    over_threshold: Any = {"x_label": "threshold", "x_limits": (0.5, 1.0), "mark": at["cross"]}
    drawn: list[tuple[Panel, dict[str, tuple[Any, Any]]]] = [
        (Panel("Accuracy over the threshold", "% of kept labels", (), **high, **over_threshold),
         {source: (grid, _shown([found])) for source, found in whole.items()}),
        (Panel("Coverage over the threshold", "% of clips", (), **percent, **over_threshold),
         {source: (grid, found.coverage()) for source, found in whole.items()}),
        (Panel("Accuracy over coverage", "% of kept labels", (), **high, x_label="coverage, %", x_limits=(0, 100)),
         {source: (100 * found.coverage(), _shown([found])) for source, found in whole.items()}),
        (Panel(f"Accuracy at {word} over time", "% of kept labels", (), **high),
         {source: (times, _shown(found)) for source, found in over_time.items()}),
        (Panel(f"Coverage at {word} over time", "% of clips", (), **percent),
         {source: (times, np.array([one.coverage()[0] for one in found])) for source, found in over_time.items()}),
    ]  # fmt: skip
    return [(panel, lines) for panel, series in drawn if (lines := _lines(series))]


def _shown(found: Sequence[Tally]) -> Any:
    """Accuracies, without those of fewer than ``FEWEST`` labels."""
    kept = np.concatenate([one.kept[:-1].sum(axis=0) for one in found])
    return np.where(kept >= FEWEST, np.concatenate([one.accuracy() for one in found]), np.nan)


def _lines(series: dict[str, tuple[Any, Any]]) -> list[Curve]:
    points = {source: np.stack([x, 100 * y], axis=1) for source, (x, y) in series.items()}
    known = {source: found for source, found in points.items() if np.isfinite(found[:, 1]).any()}
    return [Curve(SOURCES.index(source), "", source == "mean", (), found) for source, found in known.items()]
