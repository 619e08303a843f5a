"""How a run's start, its time per clip and the driver's memory grow with the manifest: each size in a process of its own.

Rows are generated, and point at the real files of a small manifest. What is measured is a run's own way: the manifest and
labels are opened, the plan is made, and Ray's stream is started and read for some blocks.
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
import ray
import ray.data
import torch

from pipeline.bench.figures import check_steps, ratio, steady_rate
from pipeline.clips.source import open_source
from pipeline.config import Config, parse_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import DrawOptions, draw_labels, write_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from pipeline.progress import progress
from pipeline.ray_cluster.connect import connect
from pipeline.ray_cluster.resources import Resources, decoder_cpus
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.on_ray import ray_stream, shard_batches

LABELED = "4/class"


def bench_scale(config: Config, sizes: Sequence[int], steps: int, repeats: int) -> dict[str, Any]:
    """Every size ``repeats`` times. ``scale_ratio``: seconds per clip of the largest over the smallest.

    Sizes come in turns, up and down again, so that a machine that grows slower is not taken for growth with size.
    """
    if len(sizes) < 2 or min(sizes) < 1000:
        raise UserError("--rows: at least two sizes of 1000 rows or more are compared")
    check_steps(steps, lay_out_blocks(open_source(config)[0], config, 0, 1).steps_per_block)
    results: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            _run("generate", config, size, Path(scratch) / str(size), steps)
        for repeat in progress(range(repeats), repeats, "repeats"):
            for size in sizes if repeat % 2 == 0 else reversed(sizes):
                results[size].append(_run("measure", config, size, Path(scratch) / str(size), steps))
    first, last = ([one["seconds_per_clip"] for one in results[size]] for size in (sizes[0], sizes[-1]))
    names = list(results[sizes[0]][0])
    table = [{name: round(float(np.median([one[name] for one in results[size]])), 4) for name in names} for size in sizes]
    return {**ratio("scale_ratio", last, first), "sizes": table}


def _run(what: str, config: Config, size: int, folder: Path, steps: int) -> dict[str, float]:
    # not multiprocessing: its children import what the parent's main module does, and that is memory too
    # a temporary folder of its own: each is a node's first process, and the manifest it maps ends with the benchmark
    words = [what, json.dumps(config.model_dump(mode="json")), str(size), str(folder), str(steps)]
    command = [sys.executable, "-m", "pipeline.bench.scale", *words]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as node:  # Ray's processes end after it
        environment = {"RAY_TMPDIR": tempfile.gettempdir(), **os.environ, "TMPDIR": node}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError(f"{what} {size} rows failed: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def generate(config: Config, size: int, folder: Path) -> None:
    """A manifest of ``size`` usable train rows over the files of ``data.manifest``, and its label subset."""
    small = read_manifest(config.data.manifest, root=config.data.root)
    rows = np.resize(small.training_rows(), size)
    table = small.table.take(pa.array(rows))
    ids = pa.array([f"{row:011d}" for row in range(size)])
    train = pa.array(np.full(size, "train"))
    nothing = pa.nulls(size, pa.string())
    for name, values in (("id", ids), ("split", train), ("group", nothing), ("hash", nothing)):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    folder.mkdir(parents=True)
    manifest = write_manifest(table, folder / "manifest.parquet", small.classes, small.root, "generated")
    write_labels(draw_labels(manifest, LABELED, 0, DrawOptions()), manifest, folder / "labels.parquet")


def measure(config: Config, size: int, folder: Path, steps: int) -> dict[str, float]:
    """Seconds of every part and the driver's memory in MB. The manifest is opened twice: as by the node's first process, and
    as by any other."""
    data = {"manifest": str(folder / "manifest.parquet"), "labels": str(folder / "labels.parquet"), "root": None}
    tree = config.model_dump(mode="json")
    tree["data"] |= data
    tree["train"]["steps"] = max(steps, 10**6)  # the stream of a run that passes over 10 M videos
    here = parse_config(tree)
    watch = Watch()
    begun = time.perf_counter()
    open_source(here)
    opened = time.perf_counter()
    source, _ = open_source(here)
    again = time.perf_counter()
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = decoder_cpus(ray.cluster_resources()["CPU"])
    started = time.perf_counter()
    layout = lay_out_blocks(source, here, 0, 1)
    (shard,) = ray_stream(source, here, 0, Resources(1, 0.0, cpus, gpu=False)).streaming_split(1, equal=True)
    times = []
    for batch in shard_batches(shard, here.data.labeled_per_step, torch.device("cpu"), timeout=60.0):
        times.append((time.perf_counter(), batch.decode_seconds))
        if len(times) == steps:
            break
    clips = source.plan.rows_per_step * source.plan.slots
    return {
        "rows": size,
        "open_first_seconds": opened - begun,
        "open_seconds": again - opened,
        "first_batch_seconds": times[0][0] - started,
        "seconds_per_clip": 1 / steady_rate([[moment for moment, _ in times]], clips, layout),
        "decode_seconds_per_clip": float(np.mean([seconds for _, seconds in times])) / clips,
        "driver_private_mb": watch.stop(),
        "blocks_in_the_run": layout.blocks,
        "seconds": time.perf_counter() - begun,
    }


class Watch:
    """The most memory that this process ever had for itself: pages of mapped files are the system's to take back."""

    def __init__(self) -> None:
        self.most, self.stopped = 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def stop(self) -> float:
        """In 10^6 bytes."""
        self.stopped.set()
        self.thread.join()
        return round(self.most / 1e6, 1)

    def _look(self) -> None:
        while not self.stopped.wait(0.05):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            self.most = max(self.most, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")))


if __name__ == "__main__":
    what, tree, size, folder, steps = sys.argv[1:]
    config = parse_config(json.loads(tree))
    if what == "generate":
        generate(config, int(size), Path(folder))
        print("{}")
    else:
        print(json.dumps(measure(config, int(size), Path(folder), int(steps))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # Ray's end is no part of it, and the cluster ends with this process
