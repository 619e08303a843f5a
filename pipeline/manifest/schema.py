"""The manifest: one Parquet table of every video, usable or not. Its rows, sorted by id, are the numbers of the project."""

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
    pa.field("uri", pa.string()),  # relative to the root with forward slashes, or absolute, or a URI
    pa.field("split", pa.string()),  # train, test, val, or unlabeled: learned from, but never among the labeled drawn
    pa.field("class", pa.string()),  # null where unknown
    pa.field("label", pa.int32()),  # place of the class among the classes, -1 where unknown
    pa.field("group", pa.string()),  # videos of one recording; a group never straddles train and test; null: alone
    pa.field("start", pa.float64()),  # part of the file in seconds; null: all of it
    pa.field("end", pa.float64()),
    pa.field("frames", pa.int32()),  # as an exact decoder returns them; 0 where unusable, as all numbers below
    pa.field("fps", pa.float64()),  # average
    pa.field("variable_fps", pa.bool_()),
    pa.field("duration", pa.float64()),  # seconds
    pa.field("width", pa.int32()),  # after rotation
    pa.field("height", pa.int32()),
    pa.field("codec", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("hash", pa.string()),  # sha256 of the file, null unless asked for
    pa.field("decoder", pa.string()),  # who decodes this file exactly
    pa.field("status", pa.string()),
    pa.field("reason", pa.string()),  # why it is not ok
    pa.field(
        "stamp", pa.string()
    ),  # of the file's last change and of how it was probed: a later probe skips what has not changed
]
SCHEMA = pa.schema(_FIELDS)
NOT_CONTENT = ("uri", "reason", "stamp")  # a place, a message and a time: the same data elsewhere has the same fingerprint


@dataclass(frozen=True)
class Manifest:
    """Videos of a data set. A row is a number in 0..len(table)-1, the same on every machine."""

    table: pa.Table
    """Columns as ``SCHEMA``, sorted by id."""
    classes: tuple[str, ...]
    """Class names; the label is the place here."""
    root: str
    """Folder or URI that relative ``uri``s start from."""
    source: str
    """How it was made: ``ucf101 split 1``, folder, list, synthetic."""
    fingerprint: str
    """16 hexadecimal digits over what is in the videos and how they are split, not over where they lie."""
    path: str
    """The Parquet file, or the folder of its parts."""

    def rows(self, split: str) -> NDArray[np.int64]:
        """Usable rows of a split, ascending."""
        return self._usable(split)

    def training_rows(self) -> NDArray[np.int64]:
        """Usable rows to learn from, ascending: train and unlabeled."""
        return self._usable("train", "unlabeled")

    def _usable(self, *splits: str) -> NDArray[np.int64]:
        assert set(splits) <= set(SPLITS), splits
        wanted = pc.and_(pc.equal(self.table["status"], "ok"), pc.is_in(self.table["split"], pa.array(splits)))
        return np.flatnonzero(wanted.to_numpy()).astype(np.int64, copy=False)  # a copy of 10 M rows is 80 MB

    def location(self, row: int) -> str:
        """Absolute path or URI of a row's video."""
        return locate(self.root, str(self.table["uri"][int(row)].as_py()))


def locate(root: str, uri: str) -> str:
    """Absolute path or URI: ``uri`` itself if it is one, else below ``root``."""
    if "://" in uri or os.path.isabs(uri):
        return uri
    return f"{root.rstrip('/')}/{uri}" if "://" in root else os.path.join(root, *uri.split("/"))


def fingerprint(table: pa.Table, classes: Sequence[str]) -> str:
    """16 hexadecimal digits over classes and all columns but ``uri``, ``reason`` and ``stamp``, whatever the order of rows.

    The bytes that are hashed are defined here and not by a library: little-endian numbers with 0 for null, a byte a row that
    says what is null, and strings as UTF-8 with their lengths. Each of them is one stream over the rows sorted by id, so the
    result does not depend on how the table is cut into parts, and memory is that of one slice.
    """
    ordered = sorted_by_id(table)
    digests = {(name, kind): hashlib.sha256() for name in SCHEMA.names if name not in NOT_CONTENT for kind in STREAMS}
    for start in range(0, ordered.num_rows, SLICE):
        part = ordered.slice(start, SLICE)
        for name in SCHEMA.names:
            if name not in NOT_CONTENT:
                for kind, content in zip(STREAMS, _streams(part[name].combine_chunks()), strict=True):
                    digests[name, kind].update(content)
    words = [VERSION, list(classes), ordered.num_rows, {f"{n} {kind}": d.hexdigest() for (n, kind), d in digests.items()}]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


STREAMS = ("nulls", "lengths", "values")
SLICE = 2**16


def _streams(column: pa.Array) -> tuple[bytes, bytes, Any]:
    """What is null, how long the strings are, and the values."""
    nulls = np.asarray(pc.is_null(column)).astype(np.uint8).tobytes()
    if pa.types.is_string(column.type):
        texts = pc.fill_null(column, "")
        _, places, content = texts.buffers()
        edges = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        values = content[edges[0] : edges[-1]] if content else b""
        return nulls, np.diff(edges).astype("<i4").tobytes(), values
    if pa.types.is_boolean(column.type):
        return nulls, b"", np.asarray(pc.fill_null(column, False)).astype(np.uint8).tobytes()
    kind = "<f8" if pa.types.is_floating(column.type) else "<i8"
    return nulls, b"", (np.asarray(pc.fill_null(column, 0)).astype(kind) + 0).tobytes()  # + 0: no negative zero


def sorted_by_id(table: pa.Table) -> pa.Table:
    """The table in the order of its ids, itself where it is so already."""
    ids = table["id"]
    if len(ids) < 2 or pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py():
        return table
    return table.sort_by("id")


def write_manifest(
    table: pa.Table, path: str | Path, classes: Sequence[str], root: str, source: str, parts: bool | None = None
) -> Manifest:
    """Sort, stamp and write a table that has the columns of ``SCHEMA``; replaced as a whole or not at all.

    ``parts`` makes it a folder of row-group-sized files; None: where it has more than a million rows.
    """
    ordered = sorted_by_id(table.select(SCHEMA.names).cast(SCHEMA))
    ids = ordered["id"]
    assert len(ids) < 2 or pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py(), "ids must be unique"
    stamp = fingerprint(ordered, classes)
    facts = {
        "version": VERSION,
        "classes": list(classes),
        "root": root,
        "source": source,
        "fingerprint": stamp,
        "versions": {"python": platform.python_version(), "pyarrow": pa.__version__, "av": version("av")},
    }
    write_table(ordered, path, facts, parts)
    return Manifest(ordered.replace_schema_metadata(None), tuple(classes), root, source, stamp, str(path))


def read_manifest(path: str | Path, root: str | None = None) -> Manifest:
    """Read a manifest; ``root`` replaces the stored one. Raises UserError for a file that is missing, foreign or edited."""
    remedy = "write one with python -m jobs.prepare"
    table, facts = read_table(path, "manifest", remedy)
    if not table.schema.equals(SCHEMA):
        raise UserError(f"{path} is not a manifest: its columns are {', '.join(table.schema.names)}; {remedy}")
    classes = tuple(facts["classes"])
    if fingerprint(table, classes) != facts["fingerprint"]:
        raise UserError(f"manifest {path} was changed after it was written; {remedy}")
    return Manifest(sorted_by_id(table), classes, root or facts["root"], facts["source"], facts["fingerprint"], str(path))
