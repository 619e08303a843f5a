"""Class probabilities of unlabeled videos from a file: another model's, an ensemble's, a crowd's.

Three tables are understood, all Parquet. Videos are named by ``id``, or as ``jobs.predict`` does.

    id, and a column of probabilities for each class     soft labels of any origin
    id, class, confidence                                one class a video; confidence, 0..1, is 1 if it is left out
    file, status, mean                                   what ``jobs.predict RUN MANIFEST --out FILE.parquet`` writes
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError, list_first, suggest
from pipeline.manifest.label_subset import Rows, find_rows
from pipeline.manifest.predicted_videos import check_predicted, find_predicted_rows
from pipeline.manifest.schema import Manifest

FIELD = "method.file_label.file"
SUM_TOLERANCE = 0.01
NAMES = ("id", "file", "status", "reason", "class", "confidence", "start", "end")
"""Columns that are no classes, unless the manifest has a class of that name."""


@dataclass(frozen=True)
class FileLabels:
    """The probabilities of a file, for the videos of one manifest."""

    probabilities: NDArray[np.float32]
    """[V, K] by row of the manifest; zeros where the file says nothing. V is one more than the last unlabeled row."""
    fingerprint: str
    """16 hexadecimal digits that depend on the probabilities alone."""
    count: int
    """Unlabeled videos of which the file says something."""


def read_file_labels(path: str, manifest: Manifest, unlabeled: Rows) -> FileLabels:
    """Reads what the file says of the ``unlabeled`` rows. Raises UserError that lists all its mistakes.

    Mistakes are columns that are missing or are no class, unknown or repeated videos, and rows that are no probabilities.
    """
    try:
        table = pq.read_table(Path(path).expanduser())
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{FIELD}={path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if "id" not in table.column_names and "status" in table.column_names:  # jobs.predict lists what it could not predict, too
        table = table.filter(pa.array([status == "ok" for status in table["status"].to_pylist()], pa.bool_()))
    rows, names, mistakes = _find_videos(path, table, manifest)
    values = _read_values(path, table, manifest)
    mistakes += [f"video {name} is there {count} times" for name, count in Counter(names).items() if count > 1]
    wrong = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) <= SUM_TOLERANCE))
    for index in np.flatnonzero(wrong):
        mistakes.append(f"video {names[index]}: the probabilities sum to {values[index].sum():.3g}, not 1")
    if mistakes:
        raise UserError(f"{FIELD}={path} cannot be used with {manifest.path}:", list_first(mistakes))
    num_rows = int(unlabeled.max()) + 1 if len(unlabeled) else 0
    out = np.zeros((num_rows, len(manifest.classes)), np.float32)
    used = (rows < num_rows) & np.isin(rows, unlabeled)
    out[rows[used]] = values[used]
    count = int(used.sum())
    if count == 0:
        raise UserError(f"{FIELD}={path} says nothing about any unlabeled video of {manifest.path}")
    digest = hashlib.sha256(out.tobytes()).hexdigest()[:16]
    return FileLabels(out, digest, count)


def _find_videos(path: str, table: pa.Table, manifest: Manifest) -> tuple[Rows, list[str], list[str]]:
    """Finds the rows of the videos; returns them, the videos' names, and what is wrong with them."""
    if "id" in table.column_names:
        ids = table["id"].cast(pa.string())
        rows, names = find_rows(ids, manifest), [str(name) for name in ids.to_pylist()]
        unknown = [f"video {name} is not in the manifest" for name, row in zip(names, rows, strict=True) if row < 0]
        return rows, names, unknown
    if "file" not in table.column_names:
        raise UserError(f"{FIELD}={path} has no column id: it needs id and a column for each class, or id and class")
    files = table["file"].cast(pa.string())
    rows, unknown = find_predicted_rows(files, manifest)
    return rows, [str(name) for name in files.to_pylist()], unknown


def _read_values(path: str, table: pa.Table, manifest: Manifest) -> NDArray[np.float32]:
    """Reads [N, K] probabilities from whichever columns say them."""
    classes = manifest.classes
    if "mean" in table.column_names and "file" in table.column_names and "mean" not in classes:
        check_predicted(table.schema, f"{FIELD}={path}", manifest)
        return np.asarray(table["mean"].to_pylist(), np.float32)
    if "class" in table.column_names and "class" not in classes:
        return _read_hard(path, table, classes)
    columns = [name for name in table.column_names if name not in NAMES or name in classes]
    mistakes = [f"there is no class {name}{suggest(name, classes)}" for name in columns if name not in classes]
    mistakes += [f"class {name} has no column" for name in classes if name not in columns]
    if mistakes:
        raise UserError(f"{FIELD}={path} has other classes than {manifest.path}:", list_first(mistakes))
    return np.stack([table[name].to_numpy().astype(np.float32) for name in classes], axis=1)


def _read_hard(path: str, table: pa.Table, classes: tuple[str, ...]) -> NDArray[np.float32]:
    """Reads one class a video. What its confidence leaves over is spread evenly over the other classes."""
    names = [str(name) for name in table["class"].to_pylist()]
    if unknown := sorted(set(names) - set(classes)):
        raise UserError(f"{FIELD}={path}:", list_first([f"there is no class {one}{suggest(one, classes)}" for one in unknown]))
    sure = np.ones(len(names), np.float32)
    if "confidence" in table.column_names:
        sure = table["confidence"].to_numpy().astype(np.float32)
        if not ((sure >= 0) & (sure <= 1)).all():
            raise UserError(f"{FIELD}={path}: confidence must be from 0 to 1")
    labels = np.array([classes.index(name) for name in names], np.int64)
    out = np.repeat(((1 - sure) / max(len(classes) - 1, 1))[:, None], len(classes), axis=1).astype(np.float32)
    out[np.arange(len(names)), labels] = sure
    return out
