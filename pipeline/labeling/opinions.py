"""What both students think of every unlabeled video: read from what training saved, or from a table of ``jobs.predict``.

Both are read in pieces of as many probabilities: memory grows by 70 bytes for each video of the manifest, not by the number
of classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import STUDENTS
from pipeline.errors import UserError, list_first
from pipeline.files.parquet import open_parquet
from pipeline.labeling.measures import MEASURES, Floats, compute_measures
from pipeline.manifest.predicted_videos import check_predicted, find_predicted_rows
from pipeline.manifest.schema import Manifest
from pipeline.run_folder.contents import list_score_files
from pipeline.seeds import Ints

PIECE = 2**21
"""Probabilities of each student that are read at once: 5,000 rows with 400 classes."""
MIN_CLIPS = 3
"""How many scored clips of a video it takes to say how often its class changed."""
RECENT = 1 / 3
"""The last part of the saved steps, whose clips of a video are averaged. A video that it lacks has its latest clip instead."""


@dataclass(frozen=True)
class ScoredClips:
    """M clips that both students classified, in the order of training."""

    steps: Ints
    """[M] optimizer steps."""
    videos: Ints
    """[M] rows of the manifest."""
    primary: Floats
    """[M, K] class probabilities."""
    auxiliary: Floats
    confidences: Floats | None = None
    """[M] the probability of the most probable class as ``jobs.predict`` gives it, by the calibrated mean of both students;
    None if the mean of ``primary`` and ``auxiliary`` is all that is known."""
    rejected: NDArray[np.bool_] | None = None
    """[M] whether ``jobs.predict --reject-unknown`` found that a video seems to show none of the classes, which depends on
    ``confidences``; None if it was not asked."""


@dataclass(frozen=True)
class Opinions:
    """Measures of V videos, by row of the manifest; ``clips`` is 0 for a video that the students never saw."""

    measures: dict[str, NDArray[np.float32]]
    """[V] for each of ``MEASURES``, means over the recent clips of a video."""
    changes: NDArray[np.float32]
    """[V] share of a video's clips whose most probable class differs from that of the clip before; NaN below MIN_CLIPS."""
    clips: NDArray[np.int32]
    """[V] number of scored clips of the video."""
    classes: NDArray[np.int32]
    """[V] the most probable class of a video's latest clip, by the mean of both students; -1 without a clip."""
    rejected: NDArray[np.bool_] | None = None
    """[V] whether a video seems to show none of the classes; None if the scores do not say it."""


class TrainingScores:
    """The scores of unlabeled videos that training saved in a run folder."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if there are none."""
        self.files = list(list_score_files(folder))
        self.what = f"{folder / 'scores'}"
        if not self.files:
            raise UserError(
                f"{folder} has no saved scores of unlabeled videos: train with train.save_scores_every above 0 and a method "
                "that uses unlabeled videos, or predict them with jobs.predict and name the table with --predictions FILE"
            )
        steps = [step for path in self.files for step in _read_range(path, "step")]
        self.recent_from = round(max(steps) - RECENT * (max(steps) - min(steps))) if steps else 0

    def read(self) -> Iterator[ScoredClips]:
        """Yields the clips in the order of training. Raises UserError if a file cannot be read."""
        for path in self.files:
            for piece in _read_pieces(path, ["step", "video", *STUDENTS]):
                steps, videos = (piece[name].to_numpy().astype(np.int64) for name in ("step", "video"))
                primary, auxiliary = (_to_matrix(piece[name]) for name in STUDENTS)
                yield ScoredClips(steps, videos, primary, auxiliary)


class PredictedScores:
    """The class probabilities in a Parquet table that ``jobs.predict`` wrote of a manifest."""

    recent_from = 0

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Raises UserError if the file is not such a table, or has other classes than the manifest."""
        self.path, self.manifest, self.what = path, manifest, str(path)
        try:
            names = pq.read_schema(path).names
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"--predictions {path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if missing := [name for name in ("file", "status", *STUDENTS) if name not in names]:
            what = f"--predictions {path} lacks the columns {', '.join(missing)}"
            raise UserError(f"{what}: write it with jobs.predict RUN {manifest.path} --out FILE.parquet")
        self.columns = ["file", "status", *STUDENTS, *(name for name in ("probability", "rejected") if name in names)]
        check_predicted(pq.read_schema(path), f"--predictions {path}", manifest)

    def read(self) -> Iterator[ScoredClips]:
        """Yields one clip a video. Raises UserError for a file that the manifest does not list."""
        for piece in _read_pieces(self.path, self.columns):
            piece = piece.filter(np.asarray(piece["status"]) == "ok")
            found, unknown = find_predicted_rows(piece["file"].cast(pa.string()), self.manifest)
            if unknown:
                what = f"--predictions {self.path} cannot be used with {self.manifest.path}; predict this manifest:"
                raise UserError(what, list_first(unknown))
            confidences = np.asarray(piece["probability"], np.float64) if "probability" in self.columns else None
            is_asked = "rejected" in self.columns and not piece["rejected"].null_count
            rejected = np.asarray(piece["rejected"], np.bool_) if is_asked else None
            primary, auxiliary = (_to_matrix(piece[name]) for name in STUDENTS)
            yield ScoredClips(np.zeros(len(found), np.int64), found, primary, auxiliary, confidences, rejected)


Scores = TrainingScores | PredictedScores


def read_opinions(scores: Scores, num_videos: int) -> Opinions:
    """Reads the measures of all videos in one pass. Raises UserError."""
    sums, latest = ({name: np.zeros(num_videos, np.float32) for name in MEASURES} for _ in range(2))
    recent, clips, changed = (np.zeros(num_videos, np.int32) for _ in range(3))
    last_class = np.full(num_videos, -1, np.int32)
    rejected: NDArray[np.bool_] | None = None
    for piece in _read_checked(scores, num_videos):
        measures = compute_measures(piece.primary, piece.auxiliary)
        if piece.confidences is not None:
            measures["unfamiliar"] = 1 - piece.confidences
        classes = (piece.primary + piece.auxiliary).argmax(axis=1).astype(np.int32)
        is_recent = piece.steps >= scores.recent_from
        order = np.argsort(piece.videos, kind="stable")  # a video's clips beside each other, in the order of training
        videos, ordered = piece.videos[order], classes[order]
        is_first = np.append(True, videos[1:] != videos[:-1])
        before = np.where(is_first, last_class[videos], np.append(-1, ordered[:-1]))
        np.add.at(changed, videos, (before >= 0) & (before != ordered))
        np.add.at(clips, videos, 1)
        np.add.at(recent, piece.videos[is_recent], 1)
        is_last = np.append(is_first[1:], True)
        last_class[videos[is_last]] = ordered[is_last]
        if piece.rejected is not None:
            rejected = np.zeros(num_videos, np.bool_) if rejected is None else rejected
            rejected[piece.videos] = piece.rejected
        for name, values in measures.items():
            latest[name][videos[is_last]] = values[order][is_last]
            np.add.at(sums[name], piece.videos[is_recent], values[is_recent].astype(np.float32))
    means = {name: np.where(recent > 0, sums[name] / np.maximum(recent, 1), latest[name]) for name in MEASURES}
    changes = np.where(clips >= MIN_CLIPS, changed / np.maximum(clips - 1, 1), np.nan).astype(np.float32)
    return Opinions(means, changes, clips, last_class, rejected)


def read_probabilities(scores: Scores, rows: Ints, num_videos: int) -> Floats:
    """Reads the class probabilities [C, 2, K] of C videos, primary and auxiliary, in another pass: means over recent clips, as
    the measures are. A video without a clip has zeros."""
    index_of_row = np.full(num_videos, -1, np.int64)
    index_of_row[rows] = np.arange(len(rows))
    sums: Floats | None = None
    for piece in _read_checked(scores, num_videos):
        if sums is None:
            sums, latest = (np.zeros((len(rows), 2, piece.primary.shape[1])) for _ in range(2))
            recent = np.zeros(len(rows), np.int64)
        wanted = np.flatnonzero(index_of_row[piece.videos] >= 0)
        both = np.stack([piece.primary[wanted], piece.auxiliary[wanted]], axis=1)
        indices, is_recent = index_of_row[piece.videos[wanted]], piece.steps[wanted] >= scores.recent_from
        for index, probabilities in zip(indices, both, strict=True):  # in order, so that the last one stays
            latest[index] = probabilities
        np.add.at(sums, indices[is_recent], both[is_recent])
        np.add.at(recent, indices[is_recent], 1)
    if sums is None:
        raise UserError(f"{scores.what} holds no scores")
    return np.where((recent > 0)[:, None, None], sums / np.maximum(recent, 1)[:, None, None], latest)


def _read_checked(scores: Scores, num_videos: int) -> Iterator[ScoredClips]:
    for piece in scores.read():
        if not len(piece.videos):
            continue
        if not 0 <= piece.videos.min() <= piece.videos.max() < num_videos:
            raise UserError(f"{scores.what} has scores of videos that the manifest does not have: it belongs to another one")
        sums = np.concatenate([piece.primary.sum(axis=1), piece.auxiliary.sum(axis=1)])
        if not np.allclose(sums, 1, atol=1e-2):
            wrong = int((~np.isclose(sums, 1, atol=1e-2)).sum())
            raise UserError(f"{scores.what}: {wrong} rows of probabilities do not sum to 1")
        yield piece


def _read_range(path: Path, column: str) -> tuple[int, ...]:
    """The smallest and largest value of a column; () if it has no rows."""
    values = _open(path).read([column])[column]
    return (pc.min(values).as_py(), pc.max(values).as_py()) if len(values) else ()


def _read_pieces(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    file = _open(path)
    try:
        for batch in file.iter_batches(max(1, PIECE // _count_classes(file)), columns=columns):
            yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _count_classes(file: pq.ParquetFile) -> int:
    """The number of probabilities of one student in a row, on average, from the file's description."""
    counts = [0, 0]
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        counts[0] += sum(column.num_values for column in columns if column.path_in_schema.startswith(f"{STUDENTS[0]}."))
        counts[1] += group.num_rows
    return max(1, counts[0] // max(1, counts[1]))


def _open(path: Path) -> pq.ParquetFile:
    try:
        return open_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _to_matrix(column: pa.ChunkedArray) -> Floats:
    array = column.combine_chunks()
    return np.asarray(array.flatten(), np.float64).reshape(len(array), -1 if len(array) else 0)
