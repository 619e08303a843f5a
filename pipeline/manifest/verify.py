"""Whether files are still what they were when the manifest was written: every byte, by their SHA-256."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.manifest import content
from pipeline.manifest.isolation import num_cores
from pipeline.manifest.progress import progress
from pipeline.manifest.schema import Manifest


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
        if content.sha256(location) == digest:
            return None
        now = content.facts(location).bytes
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return f"changed, {now} bytes instead of {size}" if now != size else "changed, at the same size"
