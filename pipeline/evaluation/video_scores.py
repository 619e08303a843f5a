"""Averages the scores of views to those of videos while they come in, so that memory holds few views however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.clips.source import Columns
from pipeline.config import STUDENTS, Config
from pipeline.evaluation.protocol import compute_softmax
from pipeline.run_folder.contents import PREDICTORS
from pipeline.seeds import Floats, Ints


@dataclass(frozen=True)
class VideoScores:
    """What the students say of V videos."""

    videos: Ints
    """[V] manifest rows."""
    scores: dict[str, Floats]
    """[V, K] probabilities by ``PREDICTORS``, averaged over clips and crops; NaN for a video of which no clip was decoded."""
    spreads: dict[str, Floats]
    """[V] by ``PREDICTORS``: the standard deviation over a video's clips of the probability of its predicted class. Crops of a
    clip are averaged first. NaN for fewer than two decoded clips."""
    decoded: Ints
    """[V] how many clips were decoded."""
    reasons: tuple[str, ...]
    """[V] why the first clip that was not decoded was not, or ""."""

    def __len__(self) -> int:
        return len(self.videos)

    def select(self, rows: slice | NDArray[np.bool_]) -> VideoScores:
        """Returns the scores of some of the videos."""
        return VideoScores(
            self.videos[rows],
            {name: values[rows] for name, values in self.scores.items()},
            {name: values[rows] for name, values in self.spreads.items()},
            self.decoded[rows],
            tuple(np.array(self.reasons, dtype=object)[rows].tolist()),
        )

    def to_table(self) -> pa.Table:
        """Makes a table of it, with all bits of the numbers."""
        columns = {"video": pa.array(self.videos), "decoded": pa.array(self.decoded)}
        columns["reason"] = pa.array(self.reasons, pa.string())
        columns |= {name: pa.array(list(self.scores[name]), pa.list_(pa.float64())) for name in PREDICTORS}
        columns |= {f"{name}_spread": pa.array(self.spreads[name]) for name in PREDICTORS}
        return pa.table(columns)


def read_video_scores(table: pa.Table) -> VideoScores:
    """Reads what ``VideoScores.to_table`` made. Raises KeyError, ValueError or ArrowException if it is something else."""
    return VideoScores(
        table["video"].to_numpy(),
        {name: np.array(table[name].to_pylist(), dtype=np.float64) for name in PREDICTORS},
        {name: table[f"{name}_spread"].to_numpy() for name in PREDICTORS},
        table["decoded"].to_numpy(),
        tuple(table["reason"].to_pylist()),
    )


def join_video_scores(parts: Sequence[VideoScores]) -> VideoScores:
    """Joins the scores of several groups of videos, in their order."""
    return VideoScores(
        np.concatenate([part.videos for part in parts]),
        {name: np.concatenate([part.scores[name] for part in parts]) for name in PREDICTORS},
        {name: np.concatenate([part.spreads[name] for part in parts]) for name in PREDICTORS},
        np.concatenate([part.decoded for part in parts]),
        tuple(reason for part in parts for reason in part.reasons),
    )


def gather_videos(batches: Iterable[Columns], config: Config) -> Iterator[VideoScores]:
    """Yields the scores of videos as soon as all of their views are there.

    ``batches`` have ``video`` and ``reason`` [n] and both students' scores [n, K] of views, as ``predict.score_views`` yields
    them: of each video all clips, and of each clip all crops, one after the other.
    """
    views = config.evaluation.clips * config.evaluation.crops
    waiting: list[Columns] = []
    for batch in batches:
        waiting.append(batch)
        count = sum(len(part["video"]) for part in waiting)
        if count < views:
            continue
        columns = {name: np.concatenate([part[name] for part in waiting]) for name in batch}
        whole = count - count % views
        yield average_videos({name: values[:whole] for name, values in columns.items()}, config)
        waiting = [{name: values[whole:] for name, values in columns.items()}]
    assert not any(len(part["video"]) for part in waiting), "the last video lacks some of its views"


def average_videos(columns: Columns, config: Config) -> VideoScores:
    """Averages the views of whole videos by ``evaluation.average``."""
    shape = (-1, config.evaluation.clips, config.evaluation.crops)
    videos, reasons_VCX = columns["video"].reshape(shape)[:, 0, 0], columns["reason"].reshape(shape)
    usable_VC = reasons_VCX[:, :, 0] == ""  # the crops of a clip share its frames
    decoded = usable_VC.sum(axis=1)
    scores, by_clip = {}, {}
    for name in STUDENTS:
        views_VCXK = columns[name].reshape(*shape, columns[name].shape[1]).astype(np.float64)
        scores[name], by_clip[name] = _average_student(views_VCXK, usable_VC, config.evaluation.average)
    for both in (scores, by_clip):
        both["mean"] = (both["primary"] + both["auxiliary"]) / 2
    spreads = {name: _compute_spread(scores[name], by_clip[name], usable_VC) for name in PREDICTORS}
    firsts = [next((str(reason) for reason in reasons.ravel() if reason), "") for reasons in reasons_VCX]
    return VideoScores(videos, scores, spreads, decoded, tuple(firsts))


def _average_student(views_VCXK: Floats, usable_VC: NDArray[np.bool_], average: str) -> tuple[Floats, Floats]:
    """Computes one student's probabilities of each video [V, K] and of each clip [V, C, K]."""
    crops = views_VCXK.shape[2]
    sums_VCK = np.where(usable_VC[:, :, None], views_VCXK.sum(axis=2), 0.0)
    counts = crops * usable_VC.sum(axis=1)
    means = np.full(sums_VCK[:, 0].shape, np.nan)
    np.divide(sums_VCK.sum(axis=1), counts[:, None], out=means, where=counts[:, None] > 0)
    if average == "logits":
        return compute_softmax(means), compute_softmax(sums_VCK / crops)
    return means, sums_VCK / crops


def _compute_spread(scores_VK: Floats, by_clip_VCK: Floats, usable_VC: NDArray[np.bool_]) -> Floats:
    predicted = np.nan_to_num(scores_VK).argmax(axis=1)
    of_class_VC = np.take_along_axis(by_clip_VCK, predicted[:, None, None], axis=2)[:, :, 0]
    clips = usable_VC.sum(axis=1)
    centers = np.where(usable_VC, of_class_VC, 0.0).sum(axis=1) / np.maximum(clips, 1)
    squares = np.where(usable_VC, (of_class_VC - centers[:, None]) ** 2, 0.0).sum(axis=1)
    spread = np.full(len(clips), np.nan)
    np.divide(squares, clips - 1, out=spread, where=clips > 1)
    return np.asarray(np.sqrt(spread))
