"""Large manifests as memory-mapped Arrow files, one on each node: all its processes share their pages, none holds a copy."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.files.parquet import KEY, VERSION
from pipeline.manifest.schema import SCHEMA, Manifest, fingerprint, read_manifest, sorted_by_id

MAPPED_ROWS = 200_000
"""From so many rows on: as a table of its own, a process takes 0.3-0.5 KB of memory for each."""
CHUNK = 2**16
"""Rows read at once while the file is made."""


@dataclass(frozen=True)
class MappedManifest(Manifest):
    """A manifest whose table is mapped; another process gets its place, not its rows, and maps what lies there then."""

    least: int = MAPPED_ROWS

    def __reduce__(self) -> tuple[Any, ...]:
        return open_manifest, (self.path, self.root, self.least)


def open_manifest(path: str, root: str | None = None, least: int = MAPPED_ROWS) -> Manifest:
    """``read_manifest``, mapped from a file in this node's temporary folder where it has ``least`` rows or more.

    The file is made on first use, after the manifest's fingerprint was checked, and made again, in place of the earlier one,
    when a part of the manifest has another size or time of change. Raises UserError as ``read_manifest`` does.
    """
    parts = _parts(path)
    if parts is None or sum(pq.read_metadata(part).num_rows for part in parts) < least:
        return read_manifest(path, root)
    marks = [[str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns] for part in parts]
    place = str(Path(storage.local_path(path)).resolve())
    return _open_mapped(path, root, least, f"{_digest(place)}-{_digest([VERSION, marks])}")


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _open_mapped(path: str, root: str | None, least: int, name: str) -> MappedManifest:
    """``name``: of the manifest's place, and of its content there."""
    parts = _parts(path) or []
    place, _ = name.split("-")
    folder = _folder()
    target = folder / f"manifest-{name}.arrow"
    with FileLock(folder / f"manifest-{place}.lock"):
        if not target.exists():
            for earlier in folder.glob(f"manifest-{place}-*"):
                earlier.unlink()  # who has it mapped keeps it; half ones are of processes that were killed
            _make(path, parts, target)
        table = _map(target)
    facts = json.loads(table.schema.metadata[KEY])
    return MappedManifest(
        table.replace_schema_metadata(None), tuple(facts["classes"]), root or facts["root"], facts["source"],
        facts["fingerprint"], path, least,
    )  # fmt: skip


def _parts(path: str) -> list[Path] | None:
    """Local Parquet files of a manifest of this version; None where ``read_manifest`` shall say what is wrong, or is needed."""
    if storage.is_remote(path):
        return None
    place = Path(storage.local_path(path))
    parts = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    try:
        stored = {(pq.read_schema(part).metadata or {}).get(KEY) for part in parts}
    except (OSError, pa.ArrowException):
        return None
    if len(stored) != 1 or None in stored or json.loads(stored.pop() or b"{}").get("version") != VERSION:
        return None
    return parts


def _make(path: str, parts: list[Path], target: Path) -> None:
    """Copy row by row, map the copy, check its fingerprint, and only then give it its name."""
    scratch = target.with_suffix(f".{os.getpid()}")
    try:
        schema = pq.read_schema(parts[0])
        if not schema.remove_metadata().equals(SCHEMA):
            read_manifest(path)  # says so
        with pa.ipc.new_file(scratch, schema) as writer:
            for part in parts:
                for batch in pq.ParquetFile(part).iter_batches(CHUNK):
                    writer.write_batch(batch)
        table = _map(scratch)
        facts = json.loads(table.schema.metadata[KEY])
        if sorted_by_id(table) is not table or fingerprint(table, facts["classes"]) != facts["fingerprint"]:
            raise UserError(f"manifest {path} was changed after it was written; write one with python -m jobs.prepare")
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _folder() -> Path:
    """Of this user, in the node's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"actnetformer-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else: set TMPDIR to a folder of your own")
    return folder


