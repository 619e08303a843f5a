"""A run with decoding over the same decoding and the same computing side by side, with nothing handed from one to the other."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.bench.figures import LEAST_BLOCKS, for_bench, ratio
from pipeline.bench.timed_step import Ready, free_memory, prepared_alone, ready_here
from pipeline.clips.plan import compute_worker_rows, share_rows
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.hardware import choose_device
from pipeline.processes.allocator import keep_freed_memory
from pipeline.processes.isolation import count_cores
from pipeline.progress import progress
from pipeline.ray_cluster.resources import check_rows_per_worker
from pipeline.run_folder.contents import read_metrics
from pipeline.stream.batches import lay_out_blocks
from pipeline.training.gpu_memory import check_training
from pipeline.training.in_process import fit_in_process

LINES = 16
"""Of metrics in the steps that are timed: the first quarter is start-up."""
LEAST_STEPS = 16
"""In this process, unless fewer are asked for (``least``)."""
AHEAD = 4
"""Steps that are decoded in advance in this process."""


def bench_end_to_end(config: Config, steps: int, repeats: int, least: int = LEAST_STEPS) -> dict[str, Any]:
    """``end_to_end_over_ideal_ratio``: steps per second of the run on ``scale.workers`` workers (0: in this process), over
    those of as many processes that only compute beside processes that only decode the same videos.

    Of the latter there is one for each core, or one for each core that computing leaves, or one works after the other:
    whichever is fastest.
    ``end_to_end_over_alone_ratio``: over what would be if neither slowed the other down, which cores that share a memory or
    their units do; decoding and computing are measured one after the other for it.
    """
    steps, more = lengths(config, steps, least)
    actual, ideal, alone = [], [], []
    on_cpu = choose_device(config).type == "cpu"
    # on a GPU the run and the processes that compute have no room together: those start anew in each repeat
    with Apart(config) if on_cpu else contextlib.nullcontext() as kept:
        for _ in progress(range(repeats), repeats, "repeats end to end"):
            actual.append(1 / run_seconds(config, steps, more))
            free_memory()
            with contextlib.nullcontext(kept) if kept else Apart(config) as apart:
                decode, compute = apart.seconds(0, apart.cores, steps), apart.seconds(apart.workers, 0, steps)
                beside = {apart.cores, max(1, apart.cores - apart.workers * apart.threads)}
                together = [apart.seconds(apart.workers, decoders, steps) for decoders in beside]
            ideal.append(1 / min(*together, decode + compute))
            busy = min(1.0, apart.workers * apart.threads / apart.cores) if on_cpu else 0.0
            alone.append(1 / max(compute, decode + busy * compute))
    return {
        "end_to_end_over_ideal": ratio("end_to_end_over_ideal_ratio", actual, ideal),
        "end_to_end_over_alone": ratio("end_to_end_over_alone_ratio", actual, alone),
    }


def lengths(config: Config, steps: int, least: int = LEAST_STEPS) -> tuple[int, int]:
    """(steps that are timed, those after them, so that the last ones share the cores with decoding too)."""
    if config.scale.workers == 0:
        return max(steps, least), AHEAD
    check_rows_per_worker(config)
    layout = lay_out_blocks(open_source(config)[0], config, 0, config.scale.workers)
    decoding = 2 * (os.cpu_count() or 1)  # blocks at once: Ray counts the machine's cores, not those that may be used
    timed = max(2 * LEAST_BLOCKS, 4 * decoding // config.scale.workers)
    after = config.data.blocks_ahead + decoding + 2  # that wait, are being decoded, or have come
    return max(steps, timed * layout.steps_per_block), after * layout.steps_per_block


def run_seconds(config: Config, steps: int, more: int) -> float:
    """Of a step of the run itself, by its own metrics, after the first quarter of ``steps``."""
    every = max(1, steps // LINES)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = prepared_alone(config, folder, steps + more, every, config.scale.workers)
        if config.scale.workers == 0:
            fit_in_process(prepared)
        else:
            # scale.workers=0 works where Ray is not installed
            from pipeline.ray_cluster.connect import check_cluster, connect_to_one_node
            from pipeline.training.on_ray.trainer import fit_on_ray

            connect_to_one_node("bench step")
            resources = check_cluster(prepared.run.config)
            check_training(prepared.run, resources)
            fit_on_ray(prepared, resources)
        lines = [line for line in read_metrics(prepared.run.folder) if steps // 4 < line["step"] <= steps]
    return float(sum(line["seconds/step"] for line in lines) / len(lines))


class Apart:
    """Processes that only compute, one for each worker, and processes that only decode, one for each core.

    Those of several workers average their gradients, as no training of theirs can do without.
    """

    def __init__(self, config: Config) -> None:
        scale = config.scale
        self.cores, self.workers = count_cores(), max(1, scale.workers)
        self.threads = scale.torch_threads or (
            max(1, self.cores // scale.workers) if scale.workers else torch.get_num_threads()
        )
        self._tree = config.model_dump_json()
        self._folder = tempfile.TemporaryDirectory()
        self._warm = (0, 0)
        """Processes that have computed, and that have decoded."""
        spawn = multiprocessing.get_context("spawn")
        self._computing, self._decoding = (
            [ProcessPoolExecutor(1, spawn) for _ in range(number)] for number in (self.workers, self.cores)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._computing, *self._decoding):
            process.shutdown()
        self._folder.cleanup()

    def seconds(self, computing: int, decoding: int, steps: int) -> float:
        """Of a step, where so many processes of each kind do ``steps`` steps together."""
        is_warm = computing <= self._warm[0] and decoding <= self._warm[1]
        self._warm = (max(computing, self._warm[0]), max(decoding, self._warm[1]))
        for number in (steps,) if is_warm else (max(2, decoding), steps):  # with its first call a process builds its part
            begun = time.perf_counter()
            pending = [
                *(
                    process.submit(_compute, self._tree, rank, self.workers, self.threads, self._folder.name, number)
                    for rank, process in enumerate(self._computing[:computing])
                ),
                *(
                    process.submit(_decode, self._tree, number, part, decoding)
                    for part, process in enumerate(self._decoding[:decoding])
                ),
            ]
            for one in pending:
                one.result()
        return (time.perf_counter() - begun) / steps


def _compute(tree: str, rank: int, workers: int, threads: int, folder: str, steps: int) -> None:
    ready = _ready(tree, rank, workers, threads, folder)
    for _ in range(steps):
        ready.step()
    if ready.device.type == "cuda":
        torch.cuda.synchronize()


@cache
def _ready(tree: str, rank: int, workers: int, threads: int, meeting: str) -> Ready:
    keep_freed_memory()
    torch.set_num_threads(threads)
    config = Config.model_validate_json(tree)
    if choose_device(config).type == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = prepared_alone(config, folder, 1)
        rows = prepared.run.plan.rows_per_step
        ready = ready_here(prepared, compute_worker_rows([0], rows, rank, workers)[0])
    if workers == 1:
        return ready
    backend = "nccl" if ready.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}/meeting", rank=rank, world_size=workers)
    context = replace(ready.context, rank=rank, part_rows=[list(share_rows(rows, workers))])
    return replace(ready, context=context, wrapped=DistributedDataParallel(ready.state.method))


def _decode(tree: str, steps: int, part: int, parts: int) -> None:
    """Every ``parts``-th row of the steps."""
    source = _source(tree)
    rows = np.arange(part, steps * source.plan.rows_per_step, parts)
    for start in range(0, len(rows), source.plan.rows_per_step):
        source.decode_rows(rows[start : start + source.plan.rows_per_step])


@cache
def _source(tree: str) -> VideoSource:
    return open_source(for_bench(Config.model_validate_json(tree), 1))[0]
