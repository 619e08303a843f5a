"""Labels of unlabeled videos from a file: another model's class probabilities, an ensemble's, a crowd's classes.

Three tables are understood, all Parquet. Videos are named by ``id``, or as ``jobs.predict`` does.

    id, and a column of probabilities for each class     soft labels of any origin
    id, class, confidence                                one class a video; confidence, 0..1, is 1 if it is left out
    file, status, mean                                   what ``jobs.predict RUN MANIFEST --out FILE.parquet`` writes
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError, list_first
from pipeline.files.parquet import open_parquet
from pipeline.manifest.label_file_columns import FIELD, Columns, choose_columns
from pipeline.manifest.label_subset import Rows, find_rows
from pipeline.manifest.predicted_videos import find_predicted_rows
from pipeline.manifest.schema import Manifest

SUM_TOLERANCE = 0.01
PIECE = 2**21
"""Probabilities that are read at once: 5,000 videos with 400 classes."""


@dataclass(frozen=True)
class FileLabels:
    """What a file says of the N unlabeled videos that it knows."""

    rows: Rows
    """[N] rows of the manifest, ascending."""
    classes: NDArray[np.int32]
    """[N] the class that the file names, or the most probable one."""
    confidence: NDArray[np.float32]
    """[N] its probability."""
    probabilities: NDArray[np.float16] | None
    """[N, K] of all classes, to a relative error of 0.0005. None if only ``classes`` are trained on, or if the file names one
    class a video: what its confidence leaves over is then spread evenly over the others."""
    class_means: NDArray[np.float32]
    """[K] the mean probability of each class over these videos."""
    fingerprint: str
    """16 hexadecimal digits that depend on what the file says of these videos alone."""

    @property
    def count(self) -> int:
        """The number of unlabeled videos of which the file says something."""
        return len(self.rows)


class _CollectedLabels:
    """What the file says of each of U unlabeled rows, filled piece by piece; memory of probabilities is used as they come."""

    def __init__(self, unlabeled: Rows, num_classes: int, keeps_probabilities: bool) -> None:
        self.unlabeled = unlabeled
        self.is_known = np.zeros(len(unlabeled), np.bool_)
        self.classes, self.confidence = np.zeros(len(unlabeled), np.int32), np.zeros(len(unlabeled), np.float32)
        self.digests = np.zeros((len(unlabeled), 16), np.uint8)
        self.probabilities = np.zeros((len(unlabeled), num_classes), np.float16) if keeps_probabilities else None
        self.sums = np.zeros(num_classes)

    def take(
        self,
        rows: Rows,
        classes: NDArray[np.int32],
        confidence: NDArray[np.float32],
        values: NDArray[np.float32],
        probabilities: NDArray[np.float32],
    ) -> None:
        """Takes the labels of some rows, unlabeled or not, with their ``probabilities`` [N, K]; ``values`` [N, ...] is what the
        file says of them."""
        own = np.flatnonzero(np.isin(rows, self.unlabeled))
        indices = np.searchsorted(self.unlabeled, rows[own])
        self.is_known[indices] = True
        self.classes[indices], self.confidence[indices] = classes[own], confidence[own]
        self.digests[indices] = _digest(values[own])
        if self.probabilities is not None:
            self.probabilities[indices] = probabilities[own]
        with np.errstate(invalid="ignore"):  # what is not a probability is refused later
            self.sums += probabilities[own].sum(axis=0, dtype=np.float64)

    def finish(self) -> FileLabels:
        """Returns what is known."""
        known = slice(None) if self.is_known.all() else self.is_known  # a slice copies nothing
        rows, digests = self.unlabeled[known], self.digests[known]
        probabilities = None if self.probabilities is None else self.probabilities[known]
        digest = hashlib.sha256(rows.astype("<i8").tobytes() + digests.tobytes()).hexdigest()[:16]
        means = (self.sums / len(rows)).astype(np.float32)
        return FileLabels(rows, self.classes[known], self.confidence[known], probabilities, means, digest)


_read_last: list[tuple[object, FileLabels]] = []


def read_file_labels(path: str, manifest: Manifest, unlabeled: Rows, hard: bool = True) -> FileLabels:
    """Reads what the file says of the ``unlabeled`` rows; of probabilities, only the most probable class if ``hard``.

    Raises UserError that lists all mistakes: columns that are missing or not a class, unknown or repeated videos, and what is
    no probability. A file that is asked for again is not read again, unless it was changed.
    """
    location = Path(path).expanduser()
    try:
        file, stamp = open_parquet(location), location.stat()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{FIELD}={path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    which = hashlib.sha256(np.ascontiguousarray(unlabeled).tobytes()).digest()
    key = (location.resolve(), stamp.st_size, stamp.st_mtime_ns, manifest.fingerprint, which, hard)
    if not _read_last or _read_last[0][0] != key:
        _read_last[:] = [(key, _read(file, path, manifest, unlabeled, hard))]
    return _read_last[0][1]


def _read(file: pq.ParquetFile, path: str, manifest: Manifest, unlabeled: Rows, hard: bool) -> FileLabels:
    columns = choose_columns(file.schema_arrow, path, manifest)
    mistakes = list(columns.mistakes)
    keeps_probabilities = not (hard or columns.label or columns.mistakes)
    collected = _CollectedLabels(unlabeled, len(manifest.classes), keeps_probabilities)
    times = np.zeros(manifest.table.num_rows, np.int32)
    for table in _read_pieces(file, path, columns, len(manifest.classes)):
        rows, unknown = _find_videos(table, columns, manifest)
        mistakes += unknown
        np.add.at(times, rows[rows >= 0], 1)
        if not columns.mistakes:
            parse = _parse_probabilities if columns.label is None else _parse_classes
            wrong = parse(table, columns, manifest, rows, hard, collected)
            mistakes += [f"video {table[columns.video][index].as_py()}: {problem}" for index, problem in wrong]
    for row in np.flatnonzero(times > 1).tolist():
        mistakes.append(f"video {manifest.table['id'][row].as_py()} is there {times[row]} times")
    if mistakes:
        raise UserError(f"{FIELD}={path} cannot be used with {manifest.path}:", list_first(mistakes))
    if not collected.is_known.any():
        raise UserError(f"{FIELD}={path} says nothing about any unlabeled video of {manifest.path}")
    return collected.finish()


def _read_pieces(file: pq.ParquetFile, path: str, columns: Columns, num_classes: int) -> Iterator[pa.Table]:
    try:
        for batch in file.iter_batches(max(1, PIECE // num_classes), columns=columns.list_names(), use_threads=False):
            table = pa.Table.from_batches([batch])
            if columns.status is not None:  # jobs.predict lists what it could not predict, too
                table = table.filter(pa.array([status == "ok" for status in table[columns.status].to_pylist()], pa.bool_()))
            if table.num_rows:
                yield table.combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{FIELD}={path} cannot be read: {str(error).splitlines()[0]}") from None


def _find_videos(table: pa.Table, columns: Columns, manifest: Manifest) -> tuple[Rows, list[str]]:
    """Finds the rows of the videos, -1 where there is none, and says which have none."""
    names = table[columns.video].cast(pa.string())
    if columns.video == "file":
        return find_predicted_rows(names, manifest)
    rows = find_rows(names, manifest)
    return rows, [f"video {names[index].as_py()} is not in the manifest" for index in np.flatnonzero(rows < 0).tolist()]


Mistakes = list[tuple[int, str]]
"""The index of a video in a piece, and what is wrong with what the file says of it."""


def _parse_probabilities(
    table: pa.Table, columns: Columns, manifest: Manifest, rows: Rows, hard: bool, collected: _CollectedLabels
) -> Mistakes:
    values = columns.read_probabilities(table, len(manifest.classes))
    sums, is_negative = values.sum(axis=1), np.asarray((values < 0).any(axis=1))
    is_wrong = is_negative | ~np.isfinite(values).all(axis=1) | ~(np.abs(sums - 1) <= SUM_TOLERANCE)
    largest = np.nan_to_num(values).argmax(axis=1).astype(np.int32)
    collected.take(rows, largest, values[np.arange(len(rows)), largest], values, values)
    return [
        (index, "a probability is below 0" if is_negative[index] else f"the probabilities sum to {sums[index]:.3g}, not 1")
        for index in np.flatnonzero(is_wrong).tolist()
    ]


def _parse_classes(
    table: pa.Table, columns: Columns, manifest: Manifest, rows: Rows, hard: bool, collected: _CollectedLabels
) -> Mistakes:
    labels, wrong = columns.read_labels(table, manifest.classes)
    confidence = columns.read_confidence(table)
    others = ((1 - confidence) / max(len(manifest.classes) - 1, 1)).astype(np.float32)  # what it leaves over, spread evenly
    probabilities = np.repeat(others[:, None], len(manifest.classes), axis=1)
    probabilities[np.arange(len(rows)), labels] = confidence
    collected.take(rows, labels, confidence, np.stack([labels.astype(np.float32), confidence], axis=1), probabilities)
    is_wrong = ~((confidence >= 0) & (confidence <= 1))
    wrong += [(index, f"confidence {confidence[index]:.3g} must be from 0 to 1") for index in np.flatnonzero(is_wrong).tolist()]
    if not hard:
        for index in np.flatnonzero(~is_wrong & (confidence < 1 / len(manifest.classes))).tolist():
            what = f"confidence {confidence[index]:.3g} is less than 1 of {len(manifest.classes)} classes"
            remedy = "leave the video out, or set method.file_label.hard=true"
            wrong.append((index, f"{what}, so that any other would be more probable; {remedy}"))
    return wrong


def _digest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Computes [N, 16] bytes of each row of values."""
    lines = np.ascontiguousarray(values, "<f4")
    digests = b"".join(hashlib.blake2b(line.tobytes(), digest_size=16).digest() for line in lines)
    return np.frombuffer(digests, np.uint8).reshape(len(values), 16)
