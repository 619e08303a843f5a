"""The classes on a report's page: the accuracy of each, and which ones are taken for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.analysis.comparison import Group
from pipeline.report.parts import sentences
from pipeline.report.plots.confusion_order import list_cells, order_by_confusion
from pipeline.report.plots.drawing import Drawing
from pipeline.report.plots.line_plots import LARGEST_LABELED, draw_confusion

MAX_CONFUSIONS = 4
"""The number of confusion matrices on a page at most, one per setting."""
MAX_ERRORS = 30
"""The number of most frequent errors that are listed if a confusion matrix cannot name its classes."""

Confusion = tuple[Drawing, list[tuple[str, str, int, int]], dict[str, str] | None]
"""A drawn confusion matrix, its most frequent errors and, if its classes are not named, what names the cells."""


@dataclass(frozen=True)
class ClassFigures:
    """What the page shows of the classes of one setting or several."""

    id: str
    """The section's id on the page."""
    of: str
    """What is said behind the heading: which data, or ""."""
    columns: list[str]
    rows: list[tuple[str, str, list[float | None]]]
    """(class, number of videos, accuracies in percent by column); empty if nothing was evaluated."""
    confusions: list[Confusion]
    split: str
    num_settings: int
    has_seeds: bool
    """Whether a setting has several seeds, over which its figures are averaged."""


def build_class_section(groups: Sequence[Group], anchor: str = "classes", of: str = "") -> ClassFigures:
    """Builds the section of these settings. ``anchor`` is its id on the page."""
    columns, rows = sentences.build_class_table(groups)
    counted = [(group, result) for group in groups if (result := sentences.count_confusions(group))]
    return ClassFigures(
        id=anchor,
        of=of,
        columns=columns,
        rows=rows,
        confusions=[
            _draw_confusion(group.label, *result, f"{anchor}-confusion{index}")
            for index, (group, result) in enumerate(counted[:MAX_CONFUSIONS])
        ],
        split=sentences.name_splits(groups),
        num_settings=len(groups),
        has_seeds=any(len(group.runs) > 1 for group in groups),
    )


def _draw_confusion(label: str, counts: Any, classes: Sequence[str], anchor: str) -> Confusion:
    cells, worst = None, sentences.find_largest_errors(counts, classes)
    if len(classes) > LARGEST_LABELED:
        order = order_by_confusion(counts)
        counts, classes = counts[order][:, order], [classes[number] for number in order]
        cells, worst = list_cells(counts, classes), sentences.find_largest_errors(counts, classes, MAX_ERRORS)
    return Drawing(label, draw_confusion(counts, classes, f"Confusion matrix of {label}", anchor)), worst, cells
