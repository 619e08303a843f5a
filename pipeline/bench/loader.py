"""The stream against the usual loader: a torch ``DataLoader`` that does what SVFormer's data set does, same views out.

What that is lies in ``peers.svformer_loader``; ``python -m jobs.bench peers`` compares more loaders, and the step with them.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import ray
import torch
from torch.utils.data import DataLoader

from pipeline.bench.figures import check_steps, for_bench, ratio, steady_rate
from pipeline.bench.peers.requests import RowViews, views_per_step
from pipeline.bench.peers.svformer_loader import make_views as make_views_of_pictures
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.hardware import choose_device
from pipeline.methods import make_views
from pipeline.processes.allocator import keep_freed_memory
from pipeline.progress import progress
from pipeline.ray_cluster.connect import connect_to_one_node
from pipeline.ray_cluster.resources import Resources
from pipeline.ray_cluster.sockets import shorten_temporary_folder_of_children
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.on_ray import ray_stream, shard_batches

PROCESSES = 2
"""Of the DataLoader, and decode tasks at once of the stream."""


def bench_loader(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Videos per second, in turns. One consumer gets the same rows' views from both: weak ones of labeled videos, weak and
    strong ones of unlabeled videos, for each student, as normalized float tensors. The stream's are made by the consumer,
    where training makes them: on the GPU if there is one, else on this machine's CPU, which decodes at the same time."""
    config = for_bench(config, steps)
    source, _ = open_source(config)
    check_steps(steps, lay_out_blocks(source, config, 0, 1).steps_per_block)
    connect_to_one_node("bench loader")
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = ray.cluster_resources().get("CPU", 1.0) / PROCESSES  # as many tasks as the DataLoader has processes
    loaders, streams = [], []
    for _ in progress(range(repeats), repeats, "repeats"):
        loaders.append(loader_rate(source, config, steps))
        streams.append(stream_views_rate(source, config, cpus))
    videos = source.plan.rows_per_step * source.plan.slots
    return {
        **ratio("loader_ratio", streams, loaders),
        "stream_videos_per_second": statistics.median(streams),
        "loader_videos_per_second": statistics.median(loaders),
        "views_per_step": views_per_step(source, config),
        "videos_per_repeat": videos * steps,
        "views_made_on": choose_device(config).type,
    }


def stream_views_rate(source: VideoSource, config: Config, cpus: float) -> float:
    """Videos per second of the stream and one consumer that makes their views."""
    (shard,) = ray_stream(source, config, 0, Resources(1, 0.0, cpus, gpu=False)).streaming_split(1, equal=True)
    device = choose_device(config).type
    remote = _consume.options(num_cpus=0, num_gpus=1 if device == "cuda" else 0)
    times = ray.get(remote.remote(shard, config.model_dump(mode="json"), device))
    return steady_rate([times], source.plan.rows_per_step * source.plan.slots, lay_out_blocks(source, config, 0, 1))


@ray.remote  # type: ignore[untyped-decorator]
def _consume(shard: ray.data.DataIterator, tree: dict[str, Any], device: str) -> list[float]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training
    config = Config.model_validate(tree)
    times = []
    for batch in shard_batches(shard, config.data.labeled_per_step, torch.device(device), timeout=60.0):
        make_views(batch, config, config.run.seed, device)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.time())
    return times


def loader_rate(source: VideoSource, config: Config, steps: int) -> float:
    """Videos per second of the DataLoader."""
    data = RowViews(source, config, steps * source.plan.rows_per_step, make_views_of_pictures)
    loader: Any = DataLoader(
        data, batch_size=source.plan.rows_per_step, num_workers=PROCESSES, multiprocessing_context="spawn"
    )  # fmt: skip
    with shorten_temporary_folder_of_children():
        times = [time.time() for _ in loader]
    return steady_rate([times], source.plan.rows_per_step * source.plan.slots)
