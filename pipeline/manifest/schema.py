"""The manifest: one Parquet table of every video, usable or not. Its rows, sorted by id, are the numbers of the project."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError

VERSION = 1
KEY = b"actnetformer"

Split = Literal["train", "test", "val"]
Status = Literal[
    "ok", "missing", "empty", "not_a_video", "no_video_stream", "truncated", "undecodable", "too_short", "unsupported_codec"
]
Decoder = Literal["decord", "pyav"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.string()),  # unique; by default the path relative to the root, so it survives a move
    pa.field("uri", pa.string()),  # relative to the root with forward slashes, or absolute, or a URI
    pa.field("split", pa.string()),
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
]
SCHEMA = pa.schema(_FIELDS)
NOT_CONTENT = ("uri", "reason")  # a place and a message: the same data elsewhere has the same fingerprint


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
    """How it was made: folder, list, synthetic."""
    fingerprint: str
    """16 hexadecimal digits over what is in the videos and how they are split, not over where they lie."""
    path: str
    """The Parquet file."""

    def rows(self, split: str) -> NDArray[np.int64]:
        """Usable rows of a split, ascending."""
        assert split in SPLITS, split
        usable = _column(self.table, "status") == "ok"
        return np.flatnonzero(usable & (_column(self.table, "split") == split)).astype(np.int64)

    def location(self, row: int) -> str:
        """Absolute path or URI of a row's video."""
        return locate(self.root, str(self.table["uri"][int(row)].as_py()))


def locate(root: str, uri: str) -> str:
    """Absolute path or URI: ``uri`` itself if it is one, else below ``root``."""
    if "://" in uri or os.path.isabs(uri):
        return uri
    return f"{root.rstrip('/')}/{uri}" if "://" in root else os.path.join(root, *uri.split("/"))


def _column(table: pa.Table, name: str) -> NDArray[np.object_]:
    return np.asarray(table[name].to_pylist(), dtype=object)


def fingerprint(table: pa.Table, classes: tuple[str, ...]) -> str:
    """Hash of the classes and of every column but ``uri`` and ``reason``, whatever the order of rows."""
    ordered = table.sort_by("id")
    digest = hashlib.sha256(json.dumps([VERSION, list(classes)]).encode())
    for name in SCHEMA.names:
        if name not in NOT_CONTENT:
            digest.update(json.dumps([name, ordered[name].to_pylist()]).encode())
    return digest.hexdigest()[:16]


def write_manifest(table: pa.Table, path: str | Path, classes: tuple[str, ...], root: str, source: str) -> Manifest:
    """Sort, stamp and write a table that has the columns of ``SCHEMA``; the file is replaced as a whole or not at all."""
    ordered = table.select(SCHEMA.names).cast(SCHEMA).sort_by("id")
    ids = ordered["id"].to_pylist()
    assert len(set(ids)) == len(ids), "ids must be unique"
    stamp = fingerprint(ordered, classes)
    facts = {
        "version": VERSION,
        "classes": list(classes),
        "root": root,
        "source": source,
        "fingerprint": stamp,
        "versions": {"python": platform.python_version(), "pyarrow": pa.__version__},
    }
    write_table(ordered, path, facts)
    return Manifest(_bare(ordered), classes, root, source, stamp, str(path))


def write_table(table: pa.Table, path: str | Path, facts: dict[str, Any]) -> None:
    """Write a Parquet file with ``facts`` as JSON under the key ``actnetformer``, under a temporary name first."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(facts).encode()}), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: str | Path, what: str, remedy: str) -> tuple[pa.Table, dict[str, Any]]:
    """A Parquet file of this project and its facts. Raises UserError when it is missing or is something else."""
    if not Path(path).is_file():
        raise UserError(f"{what} not found: {path}; {remedy}")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{what} {path} is not a readable Parquet file ({str(error).splitlines()[0]}); {remedy}") from None
    stored = (table.schema.metadata or {}).get(KEY)
    if stored is None:
        raise UserError(f"{what} {path} is a Parquet file, but none that jobs.prepare wrote; {remedy}")
    facts = json.loads(stored)
    if facts["version"] > VERSION:
        raise UserError(f"{what} {path} has version {facts['version']}; this program reads up to {VERSION}: update it")
    return _bare(table), facts


def _bare(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


def read_manifest(path: str | Path, root: str | None = None) -> Manifest:
    """Read a manifest; ``root`` replaces the stored one. Raises UserError for a file that is missing, foreign or edited."""
    remedy = "write one with python -m jobs.prepare"
    table, facts = read_table(path, "manifest", remedy)
    if not table.schema.equals(SCHEMA):
        raise UserError(f"{path} is not a manifest: its columns are {', '.join(table.schema.names)}; {remedy}")
    classes = tuple(facts["classes"])
    if fingerprint(table, classes) != facts["fingerprint"]:
        raise UserError(f"manifest {path} was changed after it was written; {remedy}")
    return Manifest(table.sort_by("id"), classes, root or facts["root"], facts["source"], facts["fingerprint"], str(path))
