"""How good pseudo-labels were, from the scores that training saved: of the other student, of oneself, of the mean of both.

A learner may be labeled by the other student (``cross``), by itself (``self``), or by the softmax of both students' mean logits
(``mean``). For each threshold two things count: coverage, the share of clips whose label is kept, and accuracy, the share of
those labels that are right. Labels of one student are the same whoever learns from them; what they tell a learner is not: so
labels that differ from the learner's own class are counted, too. Thresholds here are fixed ones, whatever policy trained.
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

from pipeline.run_folder.contents import score_parts

STUDENTS = ("primary", "auxiliary")
LABELERS = (*STUDENTS, "mean")
SOURCES = ("cross", "self", "mean")
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100))
MAX_WINDOWS = 10
"""Parts of the training time: with fewer saved steps, each is one."""
Thresholds: TypeAlias = Mapping[str, float]
"""By labeler."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """Of M clips, what each labeler said."""

    steps: Ints
    """[M], from 1."""
    videos: Ints
    """[M] rows of the manifest."""
    labels: Ints
    """[M] hidden labels, -1 where unknown."""
    classes: dict[str, Ints]
    """[M] by labeler: the most probable class."""
    confidence: dict[str, NDArray[np.float32]]
    """[M] by labeler, in 0..1."""
    num_classes: int

    def part(self, kept: NDArray[np.bool_]) -> Said:
        """Some of the clips."""
        classes = {name: values[kept] for name, values in self.classes.items()}
        confidence = {name: values[kept] for name, values in self.confidence.items()}
        return Said(self.steps[kept], self.videos[kept], self.labels[kept], classes, confidence, self.num_classes)


@dataclass(frozen=True)
class Tally:
    """Counts of one learner's labels from one source, at T thresholds, by the clip's true class; last, of unknown class."""

    videos: Ints
    """[K + 1] clips."""
    kept: Ints
    """[K + 1, T] labels whose confidence reaches the threshold."""
    right: Ints
    """[K + 1, T] right ones among them."""
    differing: Ints
    """[K + 1, T] kept labels that are not the learner's own class."""
    differing_right: Ints
    """[K + 1, T] right ones among those."""

    def coverage(self) -> Floats:
        """[T] share of clips whose label is kept; NaN without a clip."""
        return share(self.kept.sum(axis=0), np.full(self.kept.shape[1], self.videos.sum()))

    def accuracy(self) -> Floats:
        """[T] share of the kept labels of known class that are right; NaN where none is kept."""
        return share(self.right.sum(axis=0), self.kept[:-1].sum(axis=0))

    def news(self) -> Floats:
        """[T] share of the kept labels of known class that differ from the learner's own class."""
        return share(self.differing[:-1].sum(axis=0), self.kept[:-1].sum(axis=0))

    def news_accuracy(self) -> Floats:
        """[T] share of those that are right."""
        return share(self.differing_right.sum(axis=0), self.differing[:-1].sum(axis=0))


def share(part: Any, whole: Any) -> Floats:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def read_said(folder: Path) -> tuple[Said | None, list[str]]:
    """What a run's saved scores say, and what is wrong with them; None when there is none."""
    parts, problems = [], []
    for path in score_parts(folder):
        try:
            parts.append(_reduce(pq.read_table(path)))
        except FileNotFoundError:
            continue  # a run that was restarted meanwhile forgot it
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            problems.append(f"scores/{path.name} cannot be read: {str(error).splitlines()[0]}")
    return (join(parts) if parts else None), problems


def join(parts: Sequence[Said]) -> Said:
    """Several as one; a video keeps its number."""
    return Said(
        steps=np.concatenate([part.steps for part in parts]),
        videos=np.concatenate([part.videos for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        classes={name: np.concatenate([part.classes[name] for part in parts]) for name in LABELERS},
        confidence={name: np.concatenate([part.confidence[name] for part in parts]) for name in LABELERS},
        num_classes=max(part.num_classes for part in parts),
    )


def _reduce(table: pa.Table) -> Said:
    """Most probable class and confidence of each labeler: all that is needed of K scores."""
    steps, videos, labels = (table[key].to_numpy().astype(np.int64) for key in ("step", "video", "label"))
    scores = {}
    for name in STUDENTS:
        column = table[name].combine_chunks()
        scores[name] = column.values.to_numpy().reshape(len(column), -1)
    num_classes = scores["primary"].shape[1]
    logs = np.mean([np.log(np.maximum(scores[name].astype(np.float64), 1e-30)) for name in STUDENTS], axis=0)
    mean = np.exp(logs - logs.max(axis=1, keepdims=True))
    scores["mean"] = (mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)  # as methods/parts/pseudo_labels.py
    classes = {name: values.argmax(axis=1).astype(np.int64) for name, values in scores.items()}
    confidence = {name: values.max(axis=1) for name, values in scores.items()}
    return Said(steps, videos, labels, classes, confidence, num_classes)


def labeler(learner: str, source: str) -> str:
    """Who labels ``learner`` under a source."""
    other = STUDENTS[1 - STUDENTS.index(learner)]
    return {"cross": other, "self": learner, "mean": "mean"}[source]


def tally(said: Said, learner: str, source: str, thresholds: Sequence[float] = THRESHOLDS) -> Tally:
    """Counts at ascending thresholds. They are compared as float32, as training does."""
    who = labeler(learner, source)
    reached = np.searchsorted(np.asarray(thresholds, dtype=np.float32), said.confidence[who], side="right")
    right = said.classes[who] == said.labels
    differing = said.classes[who] != said.classes[learner]
    size = (said.num_classes + 1, len(thresholds) + 1)

    def count(chosen: NDArray[np.bool_]) -> Ints:
        cells = np.ravel_multi_index((said.labels[chosen], reached[chosen]), size, mode="wrap")  # class -1 is the last row
        found = np.bincount(cells, minlength=size[0] * size[1]).reshape(size)
        at_least: Ints = found[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
        return at_least

    everyone = np.ones(len(said.labels), dtype=bool)
    videos = np.bincount(said.labels % size[0], minlength=size[0])
    return Tally(videos, count(everyone), count(right), count(differing), count(right & differing))


def windows(said: Said, limit: int = MAX_WINDOWS) -> list[tuple[int, int, Said]]:
    """(first step, last step, clips) of up to ``limit`` parts with equally many saved steps."""
    steps = np.unique(said.steps)
    parts = [part for part in np.array_split(steps, min(limit, len(steps))) if len(part)]
    return [(int(p[0]), int(p[-1]), said.part((said.steps >= p[0]) & (said.steps <= p[-1]))) for p in parts]


@dataclass(frozen=True)
class Comparison:
    """Cross against self labels of one learner, each labeler at its own threshold."""

    learner: str
    thresholds: Thresholds
    coverage: dict[str, float]
    """By source, in 0..1."""
    accuracy: dict[str, float]
    """By source, in 0..1; NaN where no label is kept."""
    difference: tuple[float, float] | None
    """95 % interval of accuracy of cross minus self, by bootstrap over the videos of these runs."""
    self_at_equal_coverage: float
    """Accuracy of the learner's own most confident labels, as many as cross labels are kept."""
    news: float
    """Share of kept cross labels that are not the learner's own class, in 0..1."""
    news_accuracy: float
    """Share of those that are right."""


def compare(said: Said, learner: str, own: Thresholds) -> Comparison:
    """See ``Comparison``; clips of unknown class count for coverage only."""
    tallies = {source: tally(said, learner, source, [own[labeler(learner, source)]]) for source in SOURCES}
    order, known = np.argsort(-said.confidence[learner], kind="stable"), said.labels >= 0
    first = order[known[order]][: int(tallies["cross"].kept[:-1].sum())]
    return Comparison(
        learner, own,
        {source: float(found.coverage()[0]) for source, found in tallies.items()},
        {source: float(found.accuracy()[0]) for source, found in tallies.items()},
        _interval(said.part(known), learner, own),
        float(share((said.classes[learner] == said.labels)[first].sum(), len(first))),
        float(tallies["cross"].news()[0]), float(tallies["cross"].news_accuracy()[0]),
    )  # fmt: skip


def _interval(said: Said, learner: str, own: Thresholds, draws: int = 1000) -> tuple[float, float] | None:
    """Clips of one video are no independent ones: whole videos are drawn again."""
    _, video = np.unique(said.videos, return_inverse=True)
    sums = []
    for source in ("cross", "self"):
        who = labeler(learner, source)
        kept = said.confidence[who] >= np.float32(own[who])
        right = kept & (said.classes[who] == said.labels)
        sums += [np.bincount(video, weights=values) for values in (right, kept)]
    table, generator = np.stack(sums, axis=1), np.random.default_rng(0)
    if not len(table):
        return None
    drawn = np.array([table[generator.integers(len(table), size=len(table))].sum(axis=0) for _ in range(draws)])
    found = share(drawn[:, 0], drawn[:, 1]) - share(drawn[:, 2], drawn[:, 3])
    found = found[np.isfinite(found)]
    return (float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))) if len(found) > draws / 2 else None
