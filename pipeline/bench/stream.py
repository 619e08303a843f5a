"""The Ray Data stream over its floor: plain processes that only decode the same run rows."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import replace
from typing import Any

import ray
import ray.data

from pipeline.bench.figures import ratio, steady_rate
from pipeline.clips.plan import worker_rows
from pipeline.clips.source import Source, open_source
from pipeline.clips.stream import ray_stream, steps_per_block
from pipeline.cluster import connect
from pipeline.config import Config
from pipeline.errors import UserError

PROCESSES = 2
"""Of the floor, and consumers of the stream."""


def bench_stream(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Videos per second of the stream and of its floor, in turns so that a drifting machine hits both alike.

    Both decode the same run rows. The first quarter of each is start-up and left out of the rates, which are of the steady
    state; the time to the first batch is reported beside them.
    """
    if steps < 8:
        raise UserError(f"--steps {steps}: at least 8 are needed for a steady state")
    source, _ = open_source(config)
    connect()
    cpus = min(1.0, ray.cluster_resources().get("CPU", 1.0) / PROCESSES)
    ray.data.DataContext.get_current().enable_progress_bars = False
    floors, streams, firsts = [], [], []
    for _ in range(repeats):
        floors.append(floor_rate(source, steps))
        rate, first = stream_rate(source, config, steps, cpus)
        streams.append(rate)
        firsts.append(first)
    return {
        **ratio("stream_ratio", streams, floors),
        "clips_per_second": statistics.median(streams),
        "floor_clips_per_second": statistics.median(floors),
        "first_batch_seconds": statistics.median(firsts),
        "clips_per_repeat": steps * source.plan.rows_per_step * source.plan.slots,
        "clips_per_block": steps_per_block(source, PROCESSES, config.data.clips_per_block)
        * source.plan.rows_per_step // PROCESSES * source.plan.slots,
    }  # fmt: skip


def stream_rate(source: Source, config: Config, steps: int, cpus: float) -> tuple[float, float]:
    """(videos per second in the steady state, seconds to the first batch) of two consumers that discard what they get."""
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    dataset = ray_stream(source, short, 0, PROCESSES, cpus)
    dataset.context.execution_options.preserve_order = True
    share = source.plan.rows_per_step // PROCESSES
    begun = time.time()
    shards = dataset.streaming_split(PROCESSES, equal=True)
    arrivals = ray.get([_consume.options(num_cpus=0.01).remote(shard, share) for shard in shards])
    times = sorted(moment for worker in arrivals for moment in worker)
    return steady_rate(times, share * source.plan.slots), times[0] - begun


@ray.remote  # type: ignore[untyped-decorator]
def _consume(shard: ray.data.DataIterator, share: int) -> list[float]:
    return [time.time() for _ in shard.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2)]


def floor_rate(source: Source, steps: int) -> float:
    """Videos per second in the steady state of two plain processes that only decode the same rows."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        plain = replace(source, limits=None)  # what isolation costs must not hide in the floor
        jobs = [(plain, steps, worker) for worker in range(PROCESSES)]
        times = [moment for worker in pool.starmap(_decode_all, jobs) for moment in worker]
    return steady_rate(times, source.plan.rows_per_step // PROCESSES * source.plan.slots)


def _decode_all(source: Source, steps: int, worker: int) -> list[float]:
    times = []
    for rows in worker_rows(range(steps), source.plan.rows_per_step, worker, PROCESSES):
        source.rows(rows)
        times.append(time.time())
    return times
