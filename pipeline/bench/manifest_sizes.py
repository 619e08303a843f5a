"""Measures how time and memory grow with a manifest's rows, from listing to label subset, each size in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.label_subset import draw_labels, read_labels, write_labels
from pipeline.manifest.schema import compute_fingerprint, read_manifest, write_manifest
from pipeline.manifest.summary import summarize_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing, draw_missing_splits
from pipeline.video.probe import Probe

CLASSES, VIDEOS_PER_GROUP = 400, 4
"""The numbers of classes, as in Kinetics-400, and of videos cut from one recording."""


def measure_sizes(sizes: Sequence[int]) -> list[dict[str, float]]:
    """Measures a manifest of every size (in rows).

    Returns:
        For every size its ``rows``, the seconds of each stage by its name, their sum ``seconds``, and ``peak_mb``, the peak of
        resident memory in MB.

    Raises:
        UserError: a size is too small for the number of classes.
    """
    if wrong := [size for size in sizes if size < 2 * CLASSES * VIDEOS_PER_GROUP]:
        raise UserError(f"--rows {wrong[0]}: at least {2 * CLASSES * VIDEOS_PER_GROUP} are needed, for {CLASSES} classes")
    # not multiprocessing: its children import what the parent's main module does, and Ray and torch are 700 MB of it
    commands = [[sys.executable, "-m", "pipeline.bench.manifest_sizes", str(size)] for size in sizes]
    return [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for command in commands]


def measure_manifest(rows: int, folder: str) -> dict[str, float]:
    """Generates, splits, writes, fingerprints, labels, opens and summarizes a manifest of so many rows in ``folder``.

    Returns what ``measure_sizes`` does for one size.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - begun, 3)

    path, labels = Path(folder) / "manifest.parquet", Path(folder) / "labels.parquet"
    with timed("generate"):
        listing = generate_listing(rows)
        probes = generate_probes(rows)
    with timed("split"):
        listing = draw_missing_splits(listing, 0.1, 0)
    with timed("table"):
        table = build_table(listing, probes)
    del probes
    with timed("write"):
        manifest = write_manifest(table, path, listing.classes, listing.root, listing.source, parts=rows > 100_000)
    del listing, table
    with timed("fingerprint"):
        assert compute_fingerprint(manifest.table, manifest.classes) == manifest.fingerprint
    with timed("label"):
        write_labels(draw_labels(manifest, "10%", 0), manifest, labels)
    del manifest
    with timed("open"):
        manifest = read_manifest(path)
        read_labels(labels, manifest)
    with timed("summarize"):
        summarize_manifest(manifest)
    return {"rows": rows, **seconds, "seconds": round(sum(seconds.values()), 3), "peak_mb": read_peak_memory()}


def generate_listing(rows: int) -> Listing:
    """Returns a listing of ``rows`` videos of 400 classes, cut from recordings of four, without a split."""
    names = [f"class {number:03d}" for number in range(CLASSES)]
    labels = tuple(names[row % CLASSES] for row in range(rows))
    uris = tuple(f"{labels[row].replace(' ', '_')}/{row:011d}_000010_000020.mp4" for row in range(rows))
    groups = tuple(f"recording {row // (CLASSES * VIDEOS_PER_GROUP)} {row % CLASSES}" for row in range(rows))
    return Listing("/videos", "generated", uris, labels, groups, None)


def generate_probes(rows: int) -> list[Probe]:
    """Returns the probe results of ``rows`` usable videos, each with a hash of its own."""
    return [Probe(300, 29.97, False, 10.01, 340, 256, "h264", 10**6 + row, f"{row:064x}", "decord") for row in range(rows)]


def read_peak_memory() -> float:
    """Reads the peak resident memory of this process in MB.

    getrusage is of no use: its peak is inherited from the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return float("nan")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure_manifest(int(sys.argv[1]), scratch)))
