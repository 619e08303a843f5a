"""Results of earlier probes: from the manifest in a folder, and from the log of a run that was stopped before it wrote one.

The log is a hidden file with a line of JSON for each file probed, ``[location, [fields of the probe]]``. A million videos take
hours to probe, and a run that is killed loses only its last second.
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
from pipeline.manifest.schema import read_manifest, resolve_uri
from pipeline.video.probe import FindEarlierProbe, Probe, RecordProbe

MANIFEST_FILE, PROBE_LOG = "manifest.parquet", ".probes.jsonl"
FLUSH_SECONDS = 1.0
"""Time between two writes of the log to disk."""


@contextlib.contextmanager
def open_probe_cache(folder: Path | None) -> Iterator[tuple[FindEarlierProbe, RecordProbe]]:
    """Yields a function that finds the earlier probe of a location, and one that records a new probe in the folder's log.

    Without a folder nothing is found and nothing recorded.
    """
    if folder is None:
        yield lambda location: None, lambda location, probe: None
        return
    find_earlier, log = _load_earlier_probes(folder), _ProbeLog(folder / PROBE_LOG)

    def record(location: str, probe: Probe) -> None:
        if find_earlier(location) != probe:
            log.add(location, probe)

    try:
        yield find_earlier, record
    finally:
        log.close()


def delete_probe_log(folder: Path) -> None:
    """Deletes a folder's log; to be called when a manifest holds the probes."""
    (folder / PROBE_LOG).unlink(missing_ok=True)


class _ProbeLog:
    """The log file, which is created with the first probe."""

    def __init__(self, path: Path) -> None:
        self.path, self.flushed = path, 0.0
        self.file: TextIO | None = None

    def add(self, location: str, probe: Probe) -> None:
        if self.file is None:
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            self.file.write("\n")  # the last line of a run that was killed may be incomplete
        self.file.write(json.dumps([location, dataclasses.astuple(probe)]) + "\n")
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.file.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _load_earlier_probes(folder: Path) -> FindEarlierProbe:
    logged = _read_log(folder / PROBE_LOG)
    find_in_manifest = _load_manifest_probes(folder / MANIFEST_FILE)

    def find_earlier(location: str) -> Probe | None:
        if location in logged:
            return Probe(*json.loads(logged[location])[1])
        return find_in_manifest(location)

    return find_earlier


def _read_log(path: Path) -> dict[str, bytes]:
    """The log's lines by location; a line takes a third of the memory of its probe."""
    lines: dict[str, bytes] = {}
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):  # blank or incomplete
                location, fields = json.loads(line)
                Probe(*fields)
                lines[location] = line
    return lines


def _load_manifest_probes(path: Path) -> FindEarlierProbe:
    try:
        manifest = read_manifest(path)
    except UserError:  # there is none, or none that can be read: it is written anew
        return lambda location: None
    columns = [manifest.table[field.name] for field in dataclasses.fields(Probe)]
    rows = {resolve_uri(manifest.root, uri.as_py()): row for row, uri in enumerate(manifest.table["uri"])}

    def find_earlier(location: str) -> Probe | None:
        row = rows.get(location)
        return None if row is None else Probe(*(column[row].as_py() for column in columns))

    return find_earlier
