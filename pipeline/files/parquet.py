"""Reads and atomically writes manifests and label subsets as Parquet, in one file or in a folder of parts, with metadata.

A folder of parts is a symbolic link to ``.NAME.<tag>/part-00000.parquet ...`` beside it, so that one rename replaces all
parts at once; pyarrow, DuckDB and pandas follow the link.
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
"""Version of the tables' format, as it is stored in the metadata."""
METADATA_KEY = b"actnetformer"
"""Key of the project's metadata among those of a Parquet file."""
ROWS_PER_PART = 2**17
"""Rows in a row group; each part is one row group."""
BUFFER = 2**16
"""Bytes of a column that ``open_parquet`` reads at once."""
MAX_ROWS_IN_FILE = 2**20
"""Rows up to which a table becomes one file; longer ones become folders of parts."""


def write_table(table: pa.Table, path: str | Path, metadata: dict[str, Any], parts: bool | None = None) -> None:
    """Writes ``table`` with ``metadata`` as JSON under the key ``actnetformer``.

    If ``parts`` is true, the table becomes a folder of parts; if it is None, only if the table has more than MAX_ROWS_IN_FILE
    rows. If the process is killed at any moment, either the old table or the new one is complete. Raises UserError if ``path``
    is a folder that this program did not write.
    """
    target = Path(path)
    with_metadata = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        if parts or (parts is None and table.num_rows > MAX_ROWS_IN_FILE):
            temporary.mkdir()
            for number, start in enumerate(range(0, max(table.num_rows, 1), ROWS_PER_PART)):
                pq.write_table(with_metadata.slice(start, ROWS_PER_PART), temporary / f"part-{number:05d}.parquet")
            _link_parts(temporary, target)
        else:
            pq.write_table(with_metadata, temporary, row_group_size=ROWS_PER_PART)
            os.replace(temporary, target)
        _remove_leftovers(target)
    finally:
        if not _is_linked(target, temporary):
            _remove(temporary)


def move_table(old: str | Path, new: str | Path) -> None:
    """Moves a table that ``write_table`` wrote. A table at ``new`` is replaced at once; of ``old``, a killed move may leave a
    dangling link."""
    old, new = Path(old), Path(new)
    if old.is_symlink():
        folder = new.with_name(f".{new.name}.{uuid.uuid4().hex[:12]}")
        os.rename(old.parent / os.readlink(old), folder)
        old.unlink()
        _link_parts(folder, new)
    else:
        os.replace(old, new)
    _remove_leftovers(new)


def remove_table(path: str | Path) -> None:
    """Removes a table and its parts, if it exists."""
    Path(path).unlink(missing_ok=True)
    _remove_leftovers(Path(path))


def _list_others(path: str | Path) -> list[str]:
    """Lists the tables in a folder that are not parts of one, as are manifest and labels in the folder of a data set."""
    return sorted(file.name for file in Path(path).glob("*.parquet") if not file.name.startswith("part-"))


def _describe_folder(path: str | Path, what: str, remedy: str) -> str:
    found = _list_others(path)
    return f"{what} {path} is a folder; " + (f"name a file in it ({', '.join(found[:3])}), or {remedy}" if found else remedy)


def read_table(path: str | Path, what: str, remedy: str) -> tuple[pa.Table, dict[str, Any]]:
    """Reads a table that ``write_table`` wrote, and its metadata.

    Raises UserError if it is missing or is something else; the message begins with ``what`` and ends with ``remedy``.
    """
    try:
        files = _open(str(path))
    except FileNotFoundError:
        if Path(path).is_dir():
            raise UserError(_describe_folder(path, what, remedy)) from None
        raise UserError(f"{what} not found: {path}; {remedy}") from None
    except OSError as error:
        if not storage.is_remote(str(path)):
            raise
        raise UserError(f"{what} {path} cannot be read: {error}; {storage.REMEDY}") from None
    try:
        tables = [pq.ParquetFile(file).read() for file in files]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{what} {path} is not a readable Parquet file ({str(error).splitlines()[0]}); {remedy}") from None
    stored = {(table.schema.metadata or {}).get(METADATA_KEY) for table in tables}
    content = stored.pop()
    if stored or content is None:
        if _list_others(path):
            raise UserError(_describe_folder(path, what, remedy))
        raise UserError(f"{what} {path} is a Parquet file, but not one that jobs.prepare or jobs.label wrote; {remedy}")
    metadata: dict[str, Any] = json.loads(content)
    version = metadata.get("version")
    if not isinstance(version, int):
        raise UserError(f"{what} {path} holds something else, such as predictions; {remedy}")
    if version > VERSION:
        raise UserError(
            f"{what} {path} was written by a newer version of this program (format {version}, this one reads {VERSION}); "
            "update the program"
        )
    if version < VERSION:
        raise UserError(f"{what} {path} has format {version}; this program reads {VERSION}; {remedy}")
    return pa.concat_tables(tables).replace_schema_metadata(None), metadata


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a file whose ``iter_batches`` reads pages of the columns, and not whole columns of a row group, into memory.

    Raises OSError and ArrowException.
    """
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)


def _open(location: str) -> list[Path | io.BytesIO]:
    """The table's file, or its parts; remote ones in memory. Raises FileNotFoundError."""
    if storage.is_remote(location):
        try:
            storage.get_file_info(location)
            return [io.BytesIO(storage.read_bytes(location))]
        except IsADirectoryError:
            names = [name for name in storage.list_names(location) if name.endswith(".parquet")]
            return [io.BytesIO(storage.read_bytes(f"{location}/{name}")) for name in names]
    path = Path(storage.to_local_path(location))
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(location)
    return [*files]


def _link_parts(folder: Path, target: Path) -> None:
    link = target.with_name(f"{folder.name}.link")
    os.symlink(folder.name, link)
    if target.is_dir() and not target.is_symlink():
        link.unlink()
        raise UserError(f"{target} is a folder that this program did not write; move or rename it")
    os.replace(link, target)


def _is_linked(target: Path, folder: Path) -> bool:
    return target.is_symlink() and os.readlink(target) == folder.name


def _remove_leftovers(target: Path) -> None:
    """Remove what interrupted writers left next to a table."""
    for path in target.parent.glob(f".{target.name}.????????????*"):
        if not _is_linked(target, path):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
