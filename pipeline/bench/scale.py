"""Measures how a run's start, its time per clip and the driver's memory grow with the manifest, each size in a new process.

The rows are generated and point at the real files of a small manifest. Each measurement does what a run does: it opens the
manifest and the labels, makes the plan, starts Ray's stream and reads some blocks of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.bench.figures import check_steps, compute_ratio, compute_steady_rate
from pipeline.clips.source import open_source
from pipeline.config import Config, parse_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import DrawOptions, draw_labels, write_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from pipeline.progress import show_progress
from pipeline.ray_cluster.connect import connect, count_cpus
from pipeline.ray_cluster.resources import Resources, compute_decoder_cpus
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.on_ray import build_ray_stream, read_shard_batches

LABELED = "4/class"
"""The videos that keep their label, in the words of ``jobs.label``."""


def bench_scale(config: Config, sizes: Sequence[int], steps: int, repeats: int) -> dict[str, Any]:
    """Measures ``steps`` steps of a run on a manifest of every size (in rows), ``repeats`` times.

    The sizes take turns, upward and downward, so that a machine that slows down is not taken for growth with size.
    ``scale_ratio`` is the time per clip of the last size over that of the first. Raises UserError if there are fewer than two
    sizes, a size has fewer than 1000 rows, or ``steps`` are too few.
    """
    if len(sizes) < 2 or min(sizes) < 1000:
        raise UserError("--rows: at least two sizes of 1000 rows or more are compared")
    check_steps(steps, lay_out_blocks(open_source(config)[0], config, 0, 1).steps_per_block)
    results: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            _run_in_new_process("generate", config, size, Path(scratch) / str(size), steps)
        for repeat in show_progress(range(repeats), repeats, "repeats"):
            for size in sizes if repeat % 2 == 0 else reversed(sizes):
                results[size].append(_run_in_new_process("measure", config, size, Path(scratch) / str(size), steps))
    first, last = ([one["seconds_per_clip"] for one in results[size]] for size in (sizes[0], sizes[-1]))
    names = list(results[sizes[0]][0])
    table = [{name: round(float(np.median([one[name] for one in results[size]])), 4) for name in names} for size in sizes]
    return {**compute_ratio("scale_ratio", last, first), "sizes": table}


def _run_in_new_process(task: str, config: Config, size: int, folder: Path, steps: int) -> dict[str, float]:
    """Does the task "generate" or "measure" and returns its figures."""
    # not multiprocessing: its children import what the parent's main module does, and that is memory too
    # with a new TMPDIR the memory-mapped copy of the manifest is made again, and deleted afterward
    words = [task, json.dumps(config.model_dump(mode="json")), str(size), str(folder), str(steps)]
    command = [sys.executable, "-m", "pipeline.bench.scale", *words]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # Ray's processes end after it
        environment = {"RAY_TMPDIR": tempfile.gettempdir(), **os.environ, "TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError(f"{task} {size} rows failed: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def generate_manifest(config: Config, size: int, folder: Path) -> None:
    """Writes a manifest of ``size`` usable train rows that point at the files of ``data.manifest``, and its label subset."""
    small = read_manifest(config.data.manifest, root=config.data.root)
    rows = np.resize(small.find_training_rows(), size)
    table = small.table.take(pa.array(rows))
    ids = pa.array([f"{row:011d}" for row in range(size)])
    train = pa.array(np.full(size, "train"))
    nothing = pa.nulls(size, pa.string())
    for name, values in (("id", ids), ("split", train), ("group", nothing), ("hash", nothing)):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    folder.mkdir(parents=True)
    manifest = write_manifest(table, folder / "manifest.parquet", small.classes, small.root, "generated")
    write_labels(draw_labels(manifest, LABELED, 0, DrawOptions()), manifest, folder / "labels.parquet")


def measure_run_start(config: Config, size: int, folder: Path, steps: int) -> dict[str, float]:
    """Measures the seconds of every part and the driver's memory in MB for the manifest in ``folder``.

    The manifest is opened twice: first as the node's first process does it, then as any other process does.
    """
    data = {"manifest": str(folder / "manifest.parquet"), "labels": str(folder / "labels.parquet"), "root": None}
    tree = config.model_dump(mode="json")
    tree["data"] |= data
    tree["train"]["steps"] = max(steps, 10**6)  # the stream of a run that passes over 10 M videos
    here = parse_config(tree)
    memory = PeakPrivateMemory()
    begun = time.perf_counter()
    open_source(here)
    opened = time.perf_counter()
    source, _ = open_source(here)
    again = time.perf_counter()
    connect()
    cpus = compute_decoder_cpus(count_cpus())
    started = time.perf_counter()
    layout = lay_out_blocks(source, here, 0, 1)
    (shard,) = build_ray_stream(source, here, 0, Resources(1, 0.0, cpus, gpu=False)).streaming_split(1, equal=True)
    times = []
    for batch in read_shard_batches(shard, here.data.labeled_per_step, torch.device("cpu"), timeout=60.0):
        times.append((time.perf_counter(), batch.decode_seconds))
        if len(times) == steps:
            break
    clips = source.plan.rows_per_step * source.plan.slots
    return {
        "rows": size,
        "open_first_seconds": opened - begun,
        "open_seconds": again - opened,
        "first_batch_seconds": times[0][0] - started,
        "seconds_per_clip": 1 / compute_steady_rate([[moment for moment, _ in times]], clips, layout),
        "decode_seconds_per_clip": float(np.mean([seconds for _, seconds in times])) / clips,
        "driver_private_mb": memory.stop(),
        "blocks_in_the_run": layout.blocks,
        "seconds": time.perf_counter() - begun,
    }


class PeakPrivateMemory:
    """The peak of the private memory of this process, which a thread samples 20 times a second.

    Pages of mapped files do not count, because the system can take them back.
    """

    def __init__(self) -> None:
        self.peak_bytes, self.stopped = 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def stop(self) -> float:
        """Ends the sampling and returns the peak in MB."""
        self.stopped.set()
        self.thread.join()
        return round(self.peak_bytes / 1e6, 1)

    def _sample(self) -> None:
        while not self.stopped.wait(0.05):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            private = (1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
            self.peak_bytes = max(self.peak_bytes, *private)


if __name__ == "__main__":
    task, tree, size, folder, steps = sys.argv[1:]
    config = parse_config(json.loads(tree))
    if task == "generate":
        generate_manifest(config, int(size), Path(folder))
        print("{}")
    else:
        print(json.dumps(measure_run_start(config, int(size), Path(folder), int(steps))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # Ray's end is not part of it, and the cluster ends with this process
