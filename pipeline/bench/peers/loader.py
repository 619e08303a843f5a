"""Compares the stream with a usual loader that gives the same views: a torch ``DataLoader`` that does what SVFormer's does.

``peers.svformer_loader`` says what that is; ``python -m jobs.bench peers`` compares more loaders, and training with them.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.bench.figures import check_steps, compute_ratio, compute_steady_rate, configure_bench
from pipeline.bench.on_ray.stream import time_consumers
from pipeline.bench.peers.requests import RowViews, count_views_per_step
from pipeline.clips.batch import Batch
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.hardware import choose_device
from pipeline.methods import make_views
from pipeline.processes.allocator import keep_freed_memory
from pipeline.progress import show_progress
from pipeline.ray_cluster.connect import connect_to_one_node, count_cpus
from pipeline.ray_cluster.resources import Resources
from pipeline.ray_cluster.sockets import shorten_temporary_folder_of_children
from pipeline.stream.batches import lay_out_blocks

PROCESSES = 2
"""The number of processes of the DataLoader, and of the stream's decode tasks at once."""


def bench_loader(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Measures videos per second of the stream and of the DataLoader, in turns.

    One consumer gets the views of the same rows from both: weak views of labeled videos, and weak and strong views of unlabeled
    videos, for each student, as normalized float tensors. Those of the stream are made by the consumer, where training makes
    them: on the GPU if there is one, else on this machine's CPU, which decodes at the same time. Raises UserError if ``steps``
    are too few.
    """
    config = configure_bench(config, steps)
    source, _ = open_source(config)
    check_steps(steps, lay_out_blocks(source, config, 0, 1).steps_per_block)
    connect_to_one_node("bench loader")
    cpus = count_cpus() / PROCESSES  # as many tasks as the DataLoader has processes
    loaders, streams = [], []
    for _ in show_progress(range(repeats), repeats, "repeats"):
        loaders.append(measure_data_loader_rate(source, config, steps))
        streams.append(measure_stream_views_rate(source, config, cpus))
    videos = source.plan.rows_per_step * source.plan.slots
    return {
        **compute_ratio("loader_ratio", streams, loaders),
        "stream_videos_per_second": statistics.median(streams),
        "loader_videos_per_second": statistics.median(loaders),
        "views_per_step": count_views_per_step(source, config),
        "videos_per_repeat": videos * steps,
        "views_made_on": choose_device(config).type,
    }


def measure_stream_views_rate(source: VideoSource, config: Config, cpus: float) -> float:
    """Measures videos per second of the stream with one consumer that makes their views; Ray decodes on ``cpus`` CPUs."""
    device = choose_device(config).type
    make = partial(_make_views, config, device)
    _, times = time_consumers(source, config, Resources(1, 0.0, cpus, gpu=False), make, device)
    return compute_steady_rate(times, source.plan.rows_per_step * source.plan.slots, lay_out_blocks(source, config, 0, 1))


def _make_views(config: Config, device: str, batch: Batch) -> None:
    """Makes the views of a batch as training does, and waits until they are there."""
    torch.set_num_threads(1)
    keep_freed_memory()
    make_views(batch, config, config.run.seed, device)
    if device == "cuda":
        torch.cuda.synchronize()


def measure_data_loader_rate(source: VideoSource, config: Config, steps: int) -> float:
    """Measures videos per second of the DataLoader."""
    # here, because it imports timm, which the consumer of the stream does not need
    from pipeline.bench.peers.svformer_loader import make_svformer_views

    data = RowViews(source, config, steps * source.plan.rows_per_step, make_svformer_views)
    loader: Any = DataLoader(
        data, batch_size=source.plan.rows_per_step, num_workers=PROCESSES, multiprocessing_context="spawn"
    )  # fmt: skip
    with shorten_temporary_folder_of_children():
        times = [time.time() for _ in loader]
    return compute_steady_rate([times], source.plan.rows_per_step * source.plan.slots)
