"""Large manifests as memory-mapped Arrow files, one on each node: the node's processes share its pages and copy nothing."""

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
from pipeline.files.parquet import METADATA_KEY, VERSION
from pipeline.manifest.schema import SCHEMA, Manifest, compute_fingerprint, read_manifest, sort_by_id

MAPPED_ROWS = 200_000
"""Rows from which on manifests are mapped: a process needs 0.3-0.5 KB for each row of a table that is not."""
CHUNK = 2**16
"""Rows in memory at once while the file is made."""


@dataclass(frozen=True)
class MappedManifest(Manifest):
    """A manifest whose table is memory-mapped. When it is pickled, only its path is sent, and the receiver maps it anew."""

    min_rows: int = MAPPED_ROWS
    """Number of rows from which on ``open_manifest`` maps a manifest."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_manifest, (self.path, self.root, self.min_rows)


def open_manifest(path: str, root: str | None = None, min_rows: int = MAPPED_ROWS) -> Manifest:
    """Opens a manifest; one with ``min_rows`` rows or more is mapped from a file in this node's temporary folder.

    The file is made on first use, after the manifest's fingerprint was checked. It is replaced when a part of the manifest has
    another size or time of change. Raises UserError as ``read_manifest`` does.
    """
    parts = _find_parts(path)
    if parts is None or sum(pq.read_metadata(part).num_rows for part in parts) < min_rows:
        return read_manifest(path, root)
    content = [VERSION, [[str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns] for part in parts]]
    location = str(Path(storage.to_local_path(path)).resolve())
    return _open_mapped(path, root, min_rows, f"{_digest(location)}-{_digest(content)}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _open_mapped(path: str, root: str | None, min_rows: int, name: str) -> MappedManifest:
    """``name`` consists of a digest of the manifest's location and one of its files' sizes and times."""
    parts = _find_parts(path) or []
    location, _ = name.split("-")
    folder = _get_folder()
    target = folder / f"manifest-{name}.arrow"
    with FileLock(folder / f"manifest-{location}.lock"):
        if not target.exists():
            for earlier in folder.glob(f"manifest-{location}-*"):
                earlier.unlink()  # processes that have it mapped keep it; incomplete ones are of processes that were killed
            _make_arrow_file(path, parts, target)
        table = _map(target)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    return MappedManifest(
        table.replace_schema_metadata(None), tuple(metadata["classes"]), root or metadata["root"], metadata["source"],
        metadata["fingerprint"], path, tuple(metadata.get("lineage", ())), min_rows,
    )  # fmt: skip


def _find_parts(path: str) -> list[Path] | None:
    """The local Parquet files of a manifest; None where only ``read_manifest`` can read it, or say what is wrong with it."""
    if storage.is_remote(path):
        return None
    local = Path(storage.to_local_path(path))
    parts = sorted(local.glob("*.parquet")) if local.is_dir() else [local]
    try:
        stored = {(pq.read_schema(part).metadata or {}).get(METADATA_KEY) for part in parts}
    except (OSError, pa.ArrowException):
        return None
    if len(stored) != 1 or None in stored or json.loads(stored.pop() or b"{}").get("version") != VERSION:
        return None
    return parts


def _make_arrow_file(path: str, parts: list[Path], target: Path) -> None:
    """Copy the parts chunk by chunk, map the copy, check its fingerprint, and only then give it its name."""
    scratch = target.with_suffix(f".{os.getpid()}")
    try:
        schema = pq.read_schema(parts[0])
        if not schema.remove_metadata().equals(SCHEMA):
            read_manifest(path)  # raises the error that says so
        with pa.ipc.new_file(scratch, schema) as writer:
            for part in parts:
                for batch in pq.ParquetFile(part).iter_batches(CHUNK):
                    writer.write_batch(batch)
        table = _map(scratch)
        metadata = json.loads(table.schema.metadata[METADATA_KEY])
        if sort_by_id(table) is not table or compute_fingerprint(table, metadata["classes"]) != metadata["fingerprint"]:
            raise UserError(f"manifest {path} was changed after it was written; write one with python -m jobs.prepare")
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _get_folder() -> Path:
    """This user's folder in the node's temporary folder, made if there is none."""
    folder = Path(tempfile.gettempdir()) / f"actnetformer-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else: set TMPDIR to a folder of your own")
    return folder
