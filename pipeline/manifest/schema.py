"""The manifest: one Parquet table with a row for every video, usable or not, sorted by id. The code names videos by row."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files.parquet import VERSION, read_table, write_table

Split = Literal["train", "unlabeled", "test", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.string()),  # unique; by default the path relative to the root, so it survives a move
    pa.field("uri", pa.string()),  # path relative to the root (with forward slashes), absolute path, or URI
    pa.field("split", pa.string()),  # train, test, val, or unlabeled: trained on, but labels are never drawn from it
    pa.field("class", pa.string()),  # null where unknown
    pa.field("label", pa.int32()),  # index of the class among the classes, -1 where unknown, OTHER_CLASS where it is none
    pa.field("group", pa.string()),  # recording or person: all its videos are in the same split; null if ungrouped
    pa.field("start", pa.float64()),  # seconds from the file's start to the video's; null: the whole file from its start
    pa.field("end", pa.float64()),  # seconds from the file's start to the video's end; null: up to its end
    pa.field("frames", pa.int32()),  # that an exact decoder returns; like fps to height, 0 if the video is unusable
    pa.field("fps", pa.float64()),  # average
    pa.field("variable_fps", pa.bool_()),
    pa.field("duration", pa.float64()),  # seconds
    pa.field("width", pa.int32()),  # after rotation
    pa.field("height", pa.int32()),
    pa.field("codec", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("hash", pa.string()),  # SHA-256 of the file, null unless --hash was given
    pa.field("decoder", pa.string()),  # the decoder that returns this file's frames exactly
    pa.field("status", pa.string()),  # ok, or why the file cannot be used: one of ``pipeline.video.status.Status``
    pa.field("reason", pa.string()),  # the same in a sentence
    pa.field("stamp", pa.string()),  # modification time and probe options, to notice a change; null: probe again
]
SCHEMA = pa.schema(_FIELDS)
OTHER_CLASS = -2
"""The label of a video that is known to show none of the classes; its ``class`` says what it shows. Only videos of split
unlabeled have it: training treats them like those of unknown class, and what is measured of pseudo-labels counts them."""
NOT_IN_FINGERPRINT = ("uri", "reason", "stamp")
"""Left out, so that moving or probing the data again keeps its fingerprint."""


@dataclass(frozen=True)
class Manifest:
    """The videos of a data set. A row is an index into ``table``, the same on every machine."""

    table: pa.Table
    """The columns of ``SCHEMA``; rows are sorted by id."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    root: str
    """Folder or URI that relative ``uri``s start from."""
    source: str
    """Where the list of videos came from, for example ``ucf101 split 1``, folder, list, files or synthetic."""
    fingerprint: str
    """A hash of the classes and of all columns but uri, reason and stamp, as 16 hexadecimal digits."""
    path: str
    """Path or URI of the Parquet file or the folder of its parts; a description if the manifest is only in memory."""
    lineage: tuple[dict[str, Any], ...] = ()
    """An entry each time that classes were added: ``{"before": fingerprint, "new_classes": [...]}``; not in the fingerprint."""

    def find_usable_rows(self, *splits: str) -> NDArray[np.int64]:
        """Returns the rows of usable videos in the given splits, ascending."""
        assert set(splits) <= set(SPLITS), splits
        wanted = pc.and_(pc.equal(self.table["status"], "ok"), pc.is_in(self.table["split"], pa.array(splits)))
        return np.flatnonzero(wanted.to_numpy()).astype(np.int64, copy=False)  # a copy of 10 M rows is 80 MB

    def find_training_rows(self) -> NDArray[np.int64]:
        """Returns the rows of usable videos to train on, those of splits train and unlabeled, ascending."""
        return self.find_usable_rows("train", "unlabeled")

    def locate(self, row: int) -> str:
        """Returns the absolute path or URI of a row's video."""
        return resolve_uri(self.root, str(self.table["uri"][int(row)].as_py()))


def resolve_uri(root: str, uri: str) -> str:
    """Resolves ``uri`` to an absolute path or URI: below ``root`` if it is relative, and as it is otherwise."""
    if "://" in uri or os.path.isabs(uri):
        return uri
    return f"{root.rstrip('/')}/{uri}" if "://" in root else os.path.join(root, *uri.split("/"))


def compute_fingerprint(table: pa.Table, classes: Sequence[str]) -> str:
    """Computes 16 hexadecimal digits from the classes and all columns but ``uri``, ``reason`` and ``stamp``.

    The order of the rows does not matter. The bytes that are hashed are defined here and not by a library: little-endian
    numbers with 0 for null, one byte a row that says whether it is null, and strings as UTF-8 with their lengths. Each of these
    is one stream over the rows sorted by id, so that the result does not depend on how the table is cut into parts, and only
    one slice is in memory at a time.
    """
    ordered = sort_by_id(table)
    digests = {(name, kind): hashlib.sha256() for name in SCHEMA.names if name not in NOT_IN_FINGERPRINT for kind in STREAMS}
    for start in range(0, ordered.num_rows, SLICE):
        part = ordered.slice(start, SLICE)
        for name in SCHEMA.names:
            if name not in NOT_IN_FINGERPRINT:
                for kind, data in zip(STREAMS, _make_streams(part[name].combine_chunks()), strict=True):
                    digests[name, kind].update(data)
    content = [VERSION, list(classes), ordered.num_rows, {f"{n} {kind}": d.hexdigest() for (n, kind), d in digests.items()}]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


STREAMS = ("nulls", "lengths", "values")
"""The byte streams of a column."""
SLICE = 2**16
"""Rows that are hashed at a time."""


def _make_streams(column: pa.Array) -> tuple[bytes, bytes, Any]:
    """The bytes of ``STREAMS`` for a column: which rows are null, how long strings are, and the values."""
    nulls = np.asarray(pc.is_null(column)).astype(np.uint8).tobytes()
    if pa.types.is_string(column.type):
        texts = pc.fill_null(column, "")
        _, offsets, characters = texts.buffers()
        edges = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        values = characters[edges[0] : edges[-1]] if characters else b""
        return nulls, np.diff(edges).astype("<i4").tobytes(), values
    if pa.types.is_boolean(column.type):
        return nulls, b"", np.asarray(pc.fill_null(column, False)).astype(np.uint8).tobytes()
    kind = "<f8" if pa.types.is_floating(column.type) else "<i8"
    return nulls, b"", (np.asarray(pc.fill_null(column, 0)).astype(kind) + 0).tobytes()  # + 0: no negative zero


def sort_by_id(table: pa.Table) -> pa.Table:
    """Sorts a table by id; returns the same table if it is sorted already."""
    ids = table["id"]
    if len(ids) < 2 or pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py():
        return table
    return table.sort_by("id")


def write_manifest(
    table: pa.Table,
    path: str | Path,
    classes: Sequence[str],
    root: str,
    source: str,
    parts: bool | None = None,
    lineage: Sequence[dict[str, Any]] = (),
) -> Manifest:
    """Sorts a table that has the columns of ``SCHEMA``, and writes it with its fingerprint, completely or not at all.

    ``parts`` makes it a folder of files of one row group each; None: only if it has more than a million rows.
    """
    ordered = sort_by_id(table.select(SCHEMA.names).cast(SCHEMA))
    ids = ordered["id"]
    assert len(ids) < 2 or pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py(), "ids must be unique"
    fingerprint = compute_fingerprint(ordered, classes)
    metadata = {
        "version": VERSION,
        "classes": list(classes),
        "root": root,
        "source": source,
        "fingerprint": fingerprint,
        "versions": {"python": platform.python_version(), "pyarrow": pa.__version__, "av": version("av")},
    }
    metadata |= {"lineage": list(lineage)} if lineage else {}
    write_table(ordered, path, metadata, parts)
    table = ordered.replace_schema_metadata(None)
    return Manifest(table, tuple(classes), root, source, fingerprint, str(path), tuple(lineage))


def read_manifest(path: str | Path, root: str | None = None) -> Manifest:
    """Reads a manifest; ``root`` replaces the stored one.

    Raises UserError if the file is missing, is something else, or was changed after it was written.
    """
    remedy = "write one with python -m jobs.prepare"
    table, metadata = read_table(path, "manifest", remedy)
    if not table.schema.equals(SCHEMA):
        raise UserError(f"{path} is not a manifest: its columns are {', '.join(table.schema.names)}; {remedy}")
    classes = tuple(metadata["classes"])
    if compute_fingerprint(table, classes) != metadata["fingerprint"]:
        raise UserError(f"manifest {path} was changed after it was written; {remedy}")
    root, source, fingerprint = root or metadata["root"], metadata["source"], metadata["fingerprint"]
    lineage = tuple(metadata.get("lineage", ()))
    return Manifest(sort_by_id(table), classes, root, source, fingerprint, str(path), lineage)
