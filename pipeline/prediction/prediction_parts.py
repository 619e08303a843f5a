"""Predictions that are complete so far, a Parquet file a chunk, so that a killed command continues where it was."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files.folder_lock import lock_file


@dataclass(frozen=True)
class Parts:
    """The folder of the parts of one output file. Its name tells what is predicted and how: another command has another."""

    out: Path
    fingerprint: str

    @property
    def folder(self) -> Path:
        """The path of the hidden folder beside the output file."""
        return self.out.with_name(f".{self.out.name}.{self.fingerprint[:16]}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes this process the only one that writes the output file and its parts. Raises UserError if another one does."""
        lock = self.out.with_name(f".{self.out.name}.lock")
        remedy = "wait until it has ended, stop it, or choose another --out"
        with lock_file(lock, str(self.out), remedy=remedy, elsewhere="choose another --out"):
            self.folder.mkdir(exist_ok=True)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # not empty
                    self.folder.rmdir()

    def read(self, chunk: int, schema: pa.Schema) -> pa.Table | None:
        """Reads the part of a chunk; None if it is not there, or cannot be read and must be predicted again."""
        try:
            table = pq.read_table(self._locate(chunk))
        except (OSError, pa.ArrowException):
            return None
        return table if table.schema.equals(schema) else None

    def write(self, chunk: int, table: pa.Table) -> None:
        """Writes the part of a chunk, completely or not at all."""
        scratch = self.folder / f".{uuid.uuid4().hex}"
        pq.write_table(table, scratch)
        os.replace(scratch, self._locate(chunk))

    def delete(self) -> None:
        """Deletes the parts, after the output file was written, and those of earlier commands with the same output file.

        The lock must be held, since another command's parts are deleted too.
        """
        for folder in self.out.parent.glob(f".{glob.escape(self.out.name)}.????????????????"):
            shutil.rmtree(folder, ignore_errors=True)

    def _locate(self, chunk: int) -> Path:
        return self.folder / f"part-{chunk:06d}.parquet"
