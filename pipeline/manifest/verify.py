"""Whether files are still what they were when the manifest was written: every byte, by their SHA-256, or a sample by size."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.processes.isolation import num_cores
from pipeline.progress import progress
from pipeline.video import video_file

SAMPLED = 64
"""Videos of many that are looked at before a command starts."""
SAMPLED_HASHES = 4
"""Of these, those whose whole content is read and compared with a stored hash."""
STORE_REQUESTS = 16
"""Files that are looked at at once: a store answers one in 50 ms, and each of many as fast."""


def spread(rows: NDArray[np.int64], count: int = SAMPLED) -> NDArray[np.int64]:
    """At most ``count`` of the rows at even distances, the first and the last among them: of the same rows always the same."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).round().astype(np.int64)]


def missing_files(manifest: Manifest, rows: NDArray[np.int64]) -> list[str]:
    """Locations of those rows' files that are not there."""
    locations = [manifest.location(row) for row in rows.tolist()]
    with ThreadPoolExecutor(STORE_REQUESTS) as pool:
        there = pool.map(video_file.is_present, locations)
        return [location for location, found in zip(locations, there, strict=True) if not found]


def other_files(manifest: Manifest, rows: NDArray[np.int64]) -> list[str]:
    """Which files of these rows are not the ones that the manifest lists: by their sizes, and ``SAMPLED_HASHES`` of those that
    have a stored hash by their content too. Files that are not there are left out."""
    table = manifest.table.select(["uri", "bytes", "hash"]).take(pa.array(rows))
    hashed = set(spread(np.flatnonzero(np.asarray(pc.is_valid(table["hash"]))), SAMPLED_HASHES).tolist())
    digests = [digest if place in hashed else None for place, digest in enumerate(table["hash"].to_pylist())]
    jobs = zip(map(manifest.location, rows.tolist()), table["bytes"].to_pylist(), digests, strict=True)
    with ThreadPoolExecutor(STORE_REQUESTS) as pool:
        found = pool.map(lambda job: _is_other(*job), jobs)
        return [f"{uri}: {problem}" for uri, problem in zip(table["uri"].to_pylist(), found, strict=True) if problem]


def _is_other(location: str, size: int | None, digest: str | None) -> str | None:
    try:
        now = video_file.get_file_info(location).bytes
        if size and now != size:  # 0 where the size was not known
            return f"{size} bytes in the manifest, {now} bytes found at {location}"
        if digest is not None and video_file.compute_sha256(location) != digest:
            return f"another content (SHA-256) of the same {now} bytes found at {location}"
    except OSError:
        pass
    return None


def verify(manifest: Manifest) -> list[tuple[str, str]]:
    """(uri, what is wrong) of every file whose content is not the stored one. Raises UserError where no hash is stored."""
    rows = np.flatnonzero(np.asarray(pc.is_valid(manifest.table["hash"])))
    if not len(rows):
        raise UserError(f"{manifest.path} holds no hashes to compare with; write them with jobs.prepare --hash")
    table = manifest.table.select(["uri", "hash", "bytes"]).take(pa.array(rows))
    jobs = list(zip(map(manifest.location, rows.tolist()), table["hash"].to_pylist(), table["bytes"].to_pylist(), strict=True))
    uris = table["uri"].to_pylist()
    with ThreadPoolExecutor(num_cores()) as pool:  # hashlib lets other threads run while it computes
        found: Iterator[str | None] = progress(pool.map(lambda job: _changed(*job), jobs), len(jobs), "verified")
        return [(uri, problem) for uri, problem in zip(uris, found, strict=True) if problem]


def _changed(location: str, digest: str, size: int) -> str | None:
    try:
        if video_file.compute_sha256(location) == digest:
            return None
        now = video_file.get_file_info(location).bytes
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return f"changed, {now} bytes instead of {size}" if now != size else "changed, at the same size"
