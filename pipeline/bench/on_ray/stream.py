"""Compares the Ray Data stream with its floor: plain processes that only decode the same rows of the plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.data
import torch

from pipeline.bench.decode import PROCESSES, measure_floor_rate
from pipeline.bench.figures import check_steps, compute_ratio, compute_steady_rate, configure_bench
from pipeline.clips.batch import Batch
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.progress import show_progress
from pipeline.ray_cluster.connect import connect_to_one_node, count_cpus
from pipeline.ray_cluster.resources import Resources, compute_decoder_cpus
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.on_ray import build_ray_stream, read_shard_batches


def bench_stream(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Measures videos per second of the stream and of its floor, in turns so that a machine that slows down affects both.

    Both decode the same rows of the plan. The first quarter of each is start-up and is left out of the rates, which are those
    of the steady state; the seconds to the first batch are reported beside them. Raises UserError if ``steps`` are too few, or
    cannot be shared out equally.
    """
    config = configure_bench(config, steps)
    source, _ = open_source(config)
    layout = lay_out_blocks(source, config, 0, PROCESSES)
    check_steps(steps, layout.steps_per_block)
    if source.plan.rows_per_step % PROCESSES:
        raise UserError(
            f"data.labeled_per_step={source.plan.rows_per_step}: bench stream shares a step out to {PROCESSES} equally"
        )
    connect_to_one_node("bench stream")
    cpus = count_cpus()
    resources = Resources(PROCESSES, 0.0, compute_decoder_cpus(cpus) if cpus <= PROCESSES else cpus / PROCESSES, gpu=False)
    floors, streams, firsts = [], [], []
    for _ in show_progress(range(repeats), repeats, "repeats"):
        floors.append(measure_floor_rate(source, layout))
        rate, first = measure_stream_rate(source, config, resources)
        streams.append(rate)
        firsts.append(first)
    return {
        **compute_ratio("stream_ratio", streams, floors),
        "clips_per_second": statistics.median(streams),
        "floor_clips_per_second": statistics.median(floors),
        "first_batch_seconds": statistics.median(firsts),
        "first_batch_seconds_in_turn": [round(first, 2) for first in firsts],  # Ray's processes start for the first one
        "clips_per_repeat": steps * source.plan.rows_per_step * source.plan.slots,
        "clips_per_block": layout.steps_per_block * layout.share * source.plan.slots,
    }


def measure_stream_rate(source: VideoSource, config: Config, resources: Resources) -> tuple[float, float]:
    """Measures videos per second of the stream in its steady state, and the seconds to its first batch, which is discarded
    like all others."""
    layout = lay_out_blocks(source, config, 0, resources.workers)
    begun, arrivals = time_consumers(source, config, resources)
    return compute_steady_rate(arrivals, layout.share * source.plan.slots, layout), min(times[0] for times in arrivals) - begun


def time_consumers(
    source: VideoSource,
    config: Config,
    resources: Resources,
    use: Callable[[Batch], Any] | None = None,
    device: str = "cpu",
) -> tuple[float, list[list[float]]]:
    """Reads the stream to its end with ``resources.workers`` consumers, which call ``use`` with each batch.

    The consumers run before the stream starts, like train workers, which import torch and build networks before they ask for
    a batch. Each has a GPU if ``device`` is "cuda".

    Returns:
        The time in seconds at which the stream started, and for each consumer those at which its batches were used.
    """
    options = {"num_cpus": 0, "num_gpus": 1 if device == "cuda" else 0}
    consumers = [ray.remote(_Consumer).options(**options).remote() for _ in range(resources.workers)]
    ray.get([consumer.__ray_ready__.remote() for consumer in consumers])
    begun = time.time()
    shards = build_ray_stream(source, config, 0, resources).streaming_split(resources.workers, equal=True)
    share = lay_out_blocks(source, config, 0, resources.workers).share
    pairs = zip(consumers, shards, strict=True)
    return begun, ray.get([consumer.record_times.remote(shard, share, use, device) for consumer, shard in pairs])


class _Consumer:
    def record_times(
        self, shard: ray.data.DataIterator, share: int, use: Callable[[Batch], Any] | None, device: str
    ) -> list[float]:
        """Returns the times in seconds at which the batches were used, tensors like those of a train worker."""
        times = []
        for batch in read_shard_batches(shard, share, torch.device(device), timeout=60.0):
            if use is not None:
                use(batch)
            times.append(time.time())
        return times
