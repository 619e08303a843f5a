"""What earlier probes found: in the manifest of a folder, and in the notes of a run that was stopped before it wrote one.

Notes are lines of JSON, ``[location, [fields of the probe]]``, in a hidden file: a million videos take hours to probe, and
a run that is killed loses one second of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pipeline.errors import UserError
from pipeline.manifest.schema import locate, read_manifest
from pipeline.video.probe import FindEarlierProbe, Probe, RecordProbe

MANIFEST, NOTES = "manifest.parquet", ".probes.jsonl"
FLUSH_SECONDS = 1.0


@contextlib.contextmanager
def remembered(folder: Path | None) -> Iterator[tuple[FindEarlierProbe, RecordProbe]]:
    """What is known of a location, and where to note what is found now; nothing and nowhere without a folder."""
    if folder is None:
        yield lambda location: None, lambda location, probe: None
        return
    known, notes = _known(folder), _Notes(folder / NOTES)

    def note(location: str, probe: Probe) -> None:
        if known(location) != probe:
            notes.add(location, probe)

    try:
        yield known, note
    finally:
        notes.close()


def forget(folder: Path) -> None:
    """Remove the notes, once a manifest says what they say."""
    (folder / NOTES).unlink(missing_ok=True)


class _Notes:
    """The file, made with the first note."""

    def __init__(self, path: Path) -> None:
        self.path, self.flushed = path, 0.0
        self.file: TextIO | None = None

    def add(self, location: str, probe: Probe) -> None:
        if self.file is None:
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            self.file.write("\n")  # the last line of a run that was killed may be torn
        self.file.write(json.dumps([location, dataclasses.astuple(probe)]) + "\n")
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.file.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _known(folder: Path) -> FindEarlierProbe:
    notes = _read(folder / NOTES)
    earlier = _of_manifest(folder / MANIFEST)

    def known(location: str) -> Probe | None:
        if location in notes:
            return Probe(*json.loads(notes[location])[1])
        return earlier(location)

    return known


def _read(path: Path) -> dict[str, bytes]:
    """Lines by location; they are a third as large as what they say."""
    notes: dict[str, bytes] = {}
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):  # blank or torn
                location, fields = json.loads(line)
                Probe(*fields)
                notes[location] = line
    return notes


def _of_manifest(path: Path) -> FindEarlierProbe:
    try:
        manifest = read_manifest(path)
    except UserError:  # none, or none that can be read: it is written anew
        return lambda location: None
    columns = [manifest.table[field.name] for field in dataclasses.fields(Probe)]
    rows = {locate(manifest.root, uri.as_py()): row for row, uri in enumerate(manifest.table["uri"])}

    def known(location: str) -> Probe | None:
        row = rows.get(location)
        return None if row is None else Probe(*(column[row].as_py() for column in columns))

    return known
