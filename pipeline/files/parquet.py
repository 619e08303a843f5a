"""Parquet files of this project: facts in the metadata, replaced as a whole or not at all, one file or a folder of parts.

A folder of parts is a symbolic link to ``.NAME.<tag>/part-00000.parquet ...`` beside it, so that one rename replaces all
parts at once; pyarrow, DuckDB and pandas follow it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.files import storage

VERSION = 2
KEY = b"actnetformer"
ROWS_PER_PART = 2**17
"""Rows of a row group, and of a part."""
MAX_ROWS_IN_FILE = 2**20
"""Longer tables become folders of parts."""


def write_table(table: pa.Table, path: str | Path, facts: dict[str, Any], parts: bool | None = None) -> None:
    """Write ``table`` with ``facts`` as JSON under the key ``actnetformer``.

    ``parts``: a folder with one row group a file; None: where the table is longer than MAX_ROWS_IN_FILE. Stopped at any
    moment, this leaves the old table or the new one.
    """
    target = Path(path)
    stamped = table.replace_schema_metadata({KEY: json.dumps(facts).encode()})
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        if parts or (parts is None and table.num_rows > MAX_ROWS_IN_FILE):
            fresh.mkdir()
            for number, start in enumerate(range(0, max(table.num_rows, 1), ROWS_PER_PART)):
                pq.write_table(stamped.slice(start, ROWS_PER_PART), fresh / f"part-{number:05d}.parquet")
            _link(fresh, target)
        else:
            pq.write_table(stamped, fresh, row_group_size=ROWS_PER_PART)
            os.replace(fresh, target)
        _sweep(target)
    finally:
        if not _is_linked(target, fresh):
            _remove(fresh)


def move_table(old: str | Path, new: str | Path) -> None:
    """Put a table that ``write_table`` wrote in the place of another, in one step."""
    old, new = Path(old), Path(new)
    if old.is_symlink():
        folder = new.with_name(f".{new.name}.{uuid.uuid4().hex[:12]}")
        os.rename(old.parent / os.readlink(old), folder)
        old.unlink()
        _link(folder, new)
    else:
        os.replace(old, new)
    _sweep(new)


def remove_table(path: str | Path) -> None:
    """Remove a table, if there is one, and its parts."""
    Path(path).unlink(missing_ok=True)
    _sweep(Path(path))


def read_table(path: str | Path, what: str, remedy: str) -> tuple[pa.Table, dict[str, Any]]:
    """A table of this project and its facts. Raises UserError when it is missing or is something else."""
    try:
        tables = [pq.ParquetFile(file).read() for file in _open(str(path))]
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}; {remedy}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{what} {path} is not a readable Parquet file ({str(error).splitlines()[0]}); {remedy}") from None
    stored = {(table.schema.metadata or {}).get(KEY) for table in tables}
    facts = stored.pop()
    if stored or facts is None:
        raise UserError(f"{what} {path} is a Parquet file, but none that jobs.prepare wrote; {remedy}")
    told: dict[str, Any] = json.loads(facts)
    if told["version"] > VERSION:
        raise UserError(f"{what} {path} has version {told['version']}; this program reads up to {VERSION}: update it")
    if told["version"] < VERSION:
        raise UserError(f"{what} {path} has version {told['version']}; this program reads {VERSION}; {remedy}")
    return pa.concat_tables(tables).replace_schema_metadata(None), told


def _open(location: str) -> list[Path | io.BytesIO]:
    """The file, or its parts; remote ones in memory. Raises FileNotFoundError."""
    if storage.is_remote(location):
        try:
            storage.get_file_info(location)
            return [io.BytesIO(storage.read_bytes(location))]
        except IsADirectoryError:
            names = [name for name in storage.list_names(location) if name.endswith(".parquet")]
            return [io.BytesIO(storage.read_bytes(f"{location}/{name}")) for name in names]
    path = Path(storage.local_path(location))
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(location)
    return [*files]


def _link(folder: Path, target: Path) -> None:
    link = target.with_name(f"{folder.name}.link")
    os.symlink(folder.name, link)
    if target.is_dir() and not target.is_symlink():
        link.unlink()
        raise UserError(f"{target} is a folder that this program did not write; move it away")
    os.replace(link, target)


def _is_linked(target: Path, folder: Path) -> bool:
    return target.is_symlink() and os.readlink(target) == folder.name


def _sweep(target: Path) -> None:
    """Remove what stopped writers left beside a table."""
    for path in target.parent.glob(f".{target.name}.????????????*"):
        if not _is_linked(target, path):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
