"""Checking that video files are still those of the manifest: all of them by SHA-256, or a sample by size."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.processes.isolation import count_cores
from pipeline.progress import show_progress
from pipeline.video import video_file

SAMPLED_FILES = 64
"""Number of files that are looked at before a command starts."""
SAMPLED_HASHES = 4
"""Number of these whose whole content is read and compared with the stored hash."""
PARALLEL_REQUESTS = 16
"""Files that are looked at at the same time: a store answers one request in 50 ms, and each of many as fast."""


def sample_evenly(rows: NDArray[np.int64], count: int = SAMPLED_FILES) -> NDArray[np.int64]:
    """Returns at most ``count`` of the rows at even distances, with the first and the last among them. Nothing is random."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).round().astype(np.int64)]


def find_missing_files(manifest: Manifest, rows: NDArray[np.int64]) -> list[str]:
    """Returns the locations of those rows' files that do not exist."""
    locations = [manifest.locate(row) for row in rows.tolist()]
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        present = pool.map(video_file.is_present, locations)
        return [location for location, is_present in zip(locations, present, strict=True) if not is_present]


def find_changed_files(manifest: Manifest, rows: NDArray[np.int64]) -> list[str]:
    """Describes those rows' files that are not the ones that the manifest lists; missing files are left out.

    Compares the sizes of all, and the content of ``SAMPLED_HASHES`` of those that have a stored hash.
    """
    table = manifest.table.select(["uri", "bytes", "hash"]).take(pa.array(rows))
    hashed = set(sample_evenly(np.flatnonzero(np.asarray(pc.is_valid(table["hash"]))), SAMPLED_HASHES).tolist())
    digests = [digest if index in hashed else None for index, digest in enumerate(table["hash"].to_pylist())]
    jobs = zip(map(manifest.locate, rows.tolist()), table["bytes"].to_pylist(), digests, strict=True)
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        changes = pool.map(lambda job: _describe_change(*job), jobs)
        return [f"{uri}: {change}" for uri, change in zip(table["uri"].to_pylist(), changes, strict=True) if change]


def _describe_change(location: str, size: int | None, digest: str | None) -> str | None:
    try:
        present_size = video_file.get_file_info(location).bytes
        if size and present_size != size:  # 0 where the size was not known
            return f"{size} bytes in the manifest, {present_size} bytes found at {location}"
        if digest is not None and video_file.hash_video(location) != digest:
            return f"another content (SHA-256) of the same {present_size} bytes found at {location}"
    except OSError:
        pass
    return None


def find_altered_files(manifest: Manifest) -> list[tuple[str, str]]:
    """Reads all files that have a stored hash; returns (uri, what is wrong) of those whose content is another.

    Raises UserError if no hash is stored.
    """
    rows = np.flatnonzero(np.asarray(pc.is_valid(manifest.table["hash"])))
    if not len(rows):
        raise UserError(f"{manifest.path} holds no hashes to compare with; write them with jobs.prepare --hash")
    table = manifest.table.select(["uri", "hash", "bytes"]).take(pa.array(rows))
    jobs = list(zip(map(manifest.locate, rows.tolist()), table["hash"].to_pylist(), table["bytes"].to_pylist(), strict=True))
    uris = table["uri"].to_pylist()
    with ThreadPoolExecutor(count_cores()) as pool:  # hashlib lets other threads run while it computes
        problems: Iterator[str | None] = show_progress(pool.map(lambda job: _find_problem(*job), jobs), len(jobs), "verified")
        return [(uri, problem) for uri, problem in zip(uris, problems, strict=True) if problem]


def _find_problem(location: str, digest: str, size: int) -> str | None:
    try:
        if video_file.hash_video(location) == digest:
            return None
        present_size = video_file.get_file_info(location).bytes
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return f"changed, {present_size} bytes instead of {size}" if present_size != size else "changed, at the same size"
