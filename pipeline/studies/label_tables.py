"""What is shown of the quality of pseudo-labels: a CSV of all counts, curves, small tables, and one sentence."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.studies.label_quality import SOURCES, STUDENTS, THRESHOLDS, Said, Tally, labeler, tally, windows

FIELDS = (
    "first_step", "last_step", "learner", "source", "labeler", "threshold", "class",
    "videos", "kept", "known", "right", "coverage", "accuracy", "differing", "differing_right",
)  # fmt: skip


def as_csv(said: Said, own: float, classes: Sequence[str]) -> str:
    """``FIELDS`` and a line for each count: all training time by class at every threshold; each window in sum at every
    threshold, and by class at the training's ``own`` one. ``class`` is the true one; ``all`` has the unknown ones, too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    thresholds = sorted({*THRESHOLDS, own})
    whole = (int(said.steps.min()), int(said.steps.max()), said)
    for first, last, part in [whole, *windows(said)]:
        for learner in STUDENTS:
            for source in SOURCES:
                found, head = tally(part, learner, source, thresholds), (first, last, learner, source, labeler(learner, source))
                for place, threshold in enumerate(thresholds):
                    names = classes if part is said or threshold == own else ()
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
