"""Measures how many blocks a second the stream's executor, one thread of Ray Data for the whole run, can start."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from pipeline.bench.on_ray.executor_processes import CLOCK, CLOCK_SECONDS, TASK_SECONDS, BlockReader, ThreadClock, sleep
from pipeline.errors import UserError
from pipeline.progress import show_progress
from pipeline.ray_cluster.connect import connect_to_one_node, count_cpus
from pipeline.ray_cluster.resources import Resources
from pipeline.stream.on_ray import build_block_dataset

WORKERS = 4
"""The number of processes that take blocks."""


def bench_executor(tasks: list[int], seconds: float) -> dict[str, Any]:
    """Measures the executor for ``seconds``, with each number of decode tasks at once.

    Returns:
        For each number the blocks that came in a second, the CPU milliseconds of the executor's thread for a block, and the
        blocks a second at which that thread would fill a core. It can start at least as many: part of its time is that of
        looking whether a task has ended, which does not grow with the blocks.
    """
    connect_to_one_node("bench executor")
    figures = []
    for number in show_progress(tasks, len(tasks), "numbers of tasks"):
        with tempfile.TemporaryDirectory() as folder:
            figures.append({"decode_tasks": number, **_measure(number, seconds, Path(folder) / "clock")})
    return {"tasks": figures}


def _measure(tasks: int, seconds: float, clock: Path) -> dict[str, float]:
    resources = Resources(WORKERS, 0.0, cpus_per_decoder=count_cpus() / tasks, gpu=False)
    dataset = build_block_dataset(None, sleep, 10**6, WORKERS * tasks, resources)
    clock.touch()
    dataset.context.set_config(CLOCK, str(clock))
    dataset.context.custom_execution_callback_classes = [*dataset.context.custom_execution_callback_classes, ThreadClock]
    readers = [ray.remote(BlockReader).options(num_cpus=0).remote() for _ in range(WORKERS)]
    for reader, shard in zip(readers, dataset.streaming_split(WORKERS, equal=True), strict=True):
        reader.start.remote(shard)

    def count() -> int:
        return int(sum(ray.get([reader.count.remote() for reader in readers])))

    begun, limit = time.monotonic(), 120 + 5 * tasks * TASK_SECONDS  # each task's process has to start
    while count() < 3 * tasks:
        if time.monotonic() - begun > limit:
            raise UserError(
                f"--tasks {tasks}: so many decode tasks do not start on this machine within {limit:.0f} s; ask for fewer"
            )
        time.sleep(CLOCK_SECONDS)
    before, first = count(), time.monotonic()
    time.sleep(seconds)
    blocks, last = count() - before, time.monotonic()
    for reader in readers:
        ray.kill(reader)
    times = np.loadtxt(clock, ndmin=2)
    cpu = float(np.diff(np.interp([first, last], times[:, 0], times[:, 1]))[0])
    if blocks == 0:
        raise UserError(f"no block came in {seconds:g} s: this machine is too busy to measure anything on it")
    return {
        "blocks_per_second": round(blocks / (last - first), 1),
        "executor_ms_per_block": round(1e3 * cpu / blocks, 3),
        "most_blocks_per_second": round(blocks / cpu),
    }
