"""Measures the quality of pseudo-labels from the scores that training saved.

A student that learns from a pseudo-label (the learner) can get it from the other student (``cross``), from itself (``self``),
from the softmax of both students' mean logits (``mean``), or from a ``file`` (``method.file_label``). For each confidence
threshold two things are measured: coverage, the share of clips whose label is kept, and accuracy, the share of the kept labels
that are right. A student's labels are equally right for whoever learns from them, but only those teach a learner something new
that differ from its own prediction, so these are counted, too. The thresholds here are fixed ones, whatever policy the run was
trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import STUDENTS
from pipeline.manifest.schema import OTHER_CLASS
from pipeline.run_folder.contents import list_score_files

LABELERS = (*STUDENTS, "mean")
FILE = "file"
"""The labeler, and the source, of labels that a file gives."""
SOURCES = ("cross", "self", "mean", FILE)
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100))
MAX_WINDOWS = 10
"""The training time is divided into at most so many parts; with fewer saved steps, each step is one."""
Thresholds: TypeAlias = Mapping[str, float]
"""Confidence thresholds (0..1) by labeler."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SavedScores:
    """The predictions of each labeler for M clips of unlabeled videos."""

    steps: Ints
    """[M] optimizer steps, from 1 on."""
    videos: Ints
    """[M] rows of the manifest."""
    labels: Ints
    """[M] true classes, which were hidden from training; -1 if unknown, -2 (``OTHER_CLASS``) if it is none of the classes."""
    classes: dict[str, Ints]
    """The most probable class [M], by labeler."""
    confidence: dict[str, NDArray[np.float32]]
    """The probability [M] of that class, 0..1, by labeler."""
    num_classes: int

    @property
    def sources(self) -> tuple[str, ...]:
        """Where labels can come from: a file among them only if the run has one."""
        return SOURCES if FILE in self.classes else tuple(source for source in SOURCES if source != FILE)

    def select(self, kept: NDArray[np.bool_]) -> SavedScores:
        """Returns the clips for which ``kept`` [M] is true."""
        classes = {name: values[kept] for name, values in self.classes.items()}
        confidence = {name: values[kept] for name, values in self.confidence.items()}
        return SavedScores(self.steps[kept], self.videos[kept], self.labels[kept], classes, confidence, self.num_classes)


@dataclass(frozen=True)
class LabelCounts:
    """Counts of the labels that one learner gets from one source at T thresholds, by the true class (of K) of the clips.

    Of the last two rows, the first counts the clips that show none of the classes, the other the clips of unknown class.
    """

    clips: Ints
    """[K + 2] number of clips."""
    kept: Ints
    """[K + 2, T] labels whose confidence reaches the threshold."""
    right: Ints
    """[K + 2, T] kept labels that are right."""
    differing: Ints
    """[K + 2, T] kept labels that are not the class which the learner itself predicts."""
    differing_right: Ints
    """[K + 2, T] differing labels that are right."""

    def compute_coverage(self) -> Floats:
        """Returns the share [T] of clips whose label is kept; NaN without clips."""
        return divide(self.kept.sum(axis=0), np.full(self.kept.shape[1], self.clips.sum()))

    def compute_accuracy(self) -> Floats:
        """Returns the share [T] of the kept labels of clips of the classes that are right; NaN where none is kept."""
        return divide(self.right.sum(axis=0), self.kept[:OTHER_CLASS].sum(axis=0))

    def compute_other_share(self) -> Floats:
        """Returns the share [T] of the kept labels that lie on clips of none of the classes, among those whose truth is
        known."""
        return divide(self.kept[OTHER_CLASS], self.kept[:-1].sum(axis=0))

    def compute_other_coverage(self) -> Floats:
        """Returns the share [T] of the clips of none of the classes whose label is kept; NaN without such clips."""
        return divide(self.kept[OTHER_CLASS], np.full(self.kept.shape[1], self.clips[OTHER_CLASS]))

    def compute_differing_share(self) -> Floats:
        """Returns the share [T] of the kept labels of known class that differ from the learner's own prediction."""
        return divide(self.differing[:OTHER_CLASS].sum(axis=0), self.kept[:OTHER_CLASS].sum(axis=0))

    def compute_differing_accuracy(self) -> Floats:
        """Returns the share [T] of the differing labels that are right."""
        return divide(self.differing_right.sum(axis=0), self.differing[:OTHER_CLASS].sum(axis=0))


def divide(part: Any, whole: Any) -> Floats:
    """Divides elementwise; NaN where ``whole`` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return quotient


def read_saved_scores(folder: Path) -> tuple[SavedScores | None, list[str]]:
    """Reads the scores that a run saved (None if there are none), and describes the files that cannot be read."""
    parts, problems = [], []
    for path in list_score_files(folder):
        try:
            parts.append(_summarize_scores(pq.read_table(path)))
        except FileNotFoundError:
            continue  # a run that was restarted meanwhile forgot it
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            problems.append(f"scores/{path.name} cannot be read: {str(error).splitlines()[0]}")
    return (join_scores(parts) if parts else None), problems


def join_scores(parts: Sequence[SavedScores]) -> SavedScores:
    """Joins the scores of several files or runs; the videos keep their row numbers. Labelers are those that all have."""
    labelers = [name for name in (*LABELERS, FILE) if all(name in part.classes for part in parts)]
    return SavedScores(
        steps=np.concatenate([part.steps for part in parts]),
        videos=np.concatenate([part.videos for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        classes={name: np.concatenate([part.classes[name] for part in parts]) for name in labelers},
        confidence={name: np.concatenate([part.confidence[name] for part in parts]) for name in labelers},
        num_classes=max(part.num_classes for part in parts),
    )


def _summarize_scores(table: pa.Table) -> SavedScores:
    """Computes the most probable class and the confidence of each labeler, which is all that is needed of the K scores."""
    steps, videos, labels = (table[key].to_numpy().astype(np.int64) for key in ("step", "video", "label"))
    scores = {}
    for name in (*STUDENTS, *(name for name in [FILE] if name in table.column_names)):
        column = table[name].combine_chunks()
        scores[name] = column.values.to_numpy().reshape(len(column), -1)
    num_classes = scores["primary"].shape[1]
    logs = np.mean([np.log(np.maximum(scores[name].astype(np.float64), 1e-30)) for name in STUDENTS], axis=0)
    mean = np.exp(logs - logs.max(axis=1, keepdims=True))
    scores["mean"] = (mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)  # as methods/parts/pseudo_labels.py
    classes = {name: values.argmax(axis=1).astype(np.int64) for name, values in scores.items()}
    confidence = {name: values.max(axis=1) for name, values in scores.items()}
    return SavedScores(steps, videos, labels, classes, confidence, num_classes)


def find_labeler(learner: str, source: str) -> str:
    """Returns the labeler that labels ``learner`` if the labels come from ``source``."""
    other = STUDENTS[1 - STUDENTS.index(learner)]
    return {"cross": other, "self": learner, "mean": "mean", FILE: FILE}[source]


def count_labels(scores: SavedScores, learner: str, source: str, thresholds: Sequence[float] = THRESHOLDS) -> LabelCounts:
    """Counts labels at ascending thresholds, which are compared with the confidence as float32, as in training."""
    labeler = find_labeler(learner, source)
    reached = np.searchsorted(np.asarray(thresholds, dtype=np.float32), scores.confidence[labeler], side="right")
    right = scores.classes[labeler] == scores.labels
    differing = scores.classes[labeler] != scores.classes[learner]
    size = (scores.num_classes + 2, len(thresholds) + 1)

    def count(chosen: NDArray[np.bool_]) -> Ints:
        # -1 is the last row and -2 the one before
        cells = np.ravel_multi_index((scores.labels[chosen], reached[chosen]), size, mode="wrap")
        counts = np.bincount(cells, minlength=size[0] * size[1]).reshape(size)
        at_least: Ints = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
        return at_least

    everyone = np.ones(len(scores.labels), dtype=bool)
    clips = np.bincount(scores.labels % size[0], minlength=size[0])
    return LabelCounts(clips, count(everyone), count(right), count(differing), count(right & differing))


def split_training_time(scores: SavedScores, limit: int = MAX_WINDOWS) -> list[tuple[int, int, SavedScores]]:
    """Splits the clips into up to ``limit`` parts with equally many saved steps: (first step, last step, clips)."""
    steps = np.unique(scores.steps)
    parts = [part for part in np.array_split(steps, min(limit, len(steps))) if len(part)]
    return [(int(p[0]), int(p[-1]), scores.select((scores.steps >= p[0]) & (scores.steps <= p[-1]))) for p in parts]


@dataclass(frozen=True)
class SourceComparison:
    """A comparison of the cross labels with the self labels of one learner, each labeler at its own threshold."""

    learner: str
    thresholds: Thresholds
    coverage: dict[str, float]
    """The share of clips whose label is kept, 0..1, by source."""
    accuracy: dict[str, float]
    """The share of kept labels that are right, 0..1, by source; NaN if no label is kept."""
    difference: tuple[float, float] | None
    """The 95 % interval of the accuracy of cross labels minus that of self labels, by bootstrap over the videos of these
    runs."""
    self_at_equal_coverage: float
    """The accuracy of the learner's N most confident own labels, where N is the number of kept cross labels."""
    differing_share: float
    """The share of kept cross labels that are not the class which the learner itself predicts, 0..1."""
    differing_accuracy: float
    """The share of the differing cross labels that are right, 0..1."""
    other_share: float
    """The share of the kept cross labels that lie on clips of none of the classes, 0..1."""


def compare_sources(scores: SavedScores, learner: str, thresholds: Thresholds) -> SourceComparison:
    """Compares the sources of labels for one learner; clips of unknown class or of none count for the coverage only."""
    counts = {
        source: count_labels(scores, learner, source, [thresholds[find_labeler(learner, source)]]) for source in scores.sources
    }
    order, known = np.argsort(-scores.confidence[learner], kind="stable"), scores.labels >= 0
    first = order[known[order]][: int(counts["cross"].kept[:OTHER_CLASS].sum())]
    return SourceComparison(
        learner, thresholds,
        {source: float(source_counts.compute_coverage()[0]) for source, source_counts in counts.items()},
        {source: float(source_counts.compute_accuracy()[0]) for source, source_counts in counts.items()},
        _bootstrap_difference(scores.select(known), learner, thresholds),
        float(divide((scores.classes[learner] == scores.labels)[first].sum(), len(first))),
        float(counts["cross"].compute_differing_share()[0]), float(counts["cross"].compute_differing_accuracy()[0]),
        float(counts["cross"].compute_other_share()[0]),
    )  # fmt: skip


def _bootstrap_difference(
    scores: SavedScores, learner: str, thresholds: Thresholds, draws: int = 1000
) -> tuple[float, float] | None:
    """Returns the 95 % interval of the accuracy of cross labels minus that of self labels.

    Whole videos are resampled, because clips of one video are not independent.
    """
    _, video = np.unique(scores.videos, return_inverse=True)
    sums = []
    for source in ("cross", "self"):
        labeler = find_labeler(learner, source)
        kept = scores.confidence[labeler] >= np.float32(thresholds[labeler])
        right = kept & (scores.classes[labeler] == scores.labels)
        sums += [np.bincount(video, weights=values) for values in (right, kept)]
    table, generator = np.stack(sums, axis=1), np.random.default_rng(0)
    if not len(table):
        return None
    drawn = np.array([table[generator.integers(len(table), size=len(table))].sum(axis=0) for _ in range(draws)])
    differences = divide(drawn[:, 0], drawn[:, 1]) - divide(drawn[:, 2], drawn[:, 3])
    differences = differences[np.isfinite(differences)]
    if len(differences) <= draws / 2:
        return None
    return float(np.quantile(differences, 0.025)), float(np.quantile(differences, 0.975))
