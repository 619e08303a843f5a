"""Compares a run with the same decoding and the same computing side by side, where neither hands anything to the other."""

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

from pipeline.bench.figures import MIN_BLOCKS, compute_ratio, configure_bench
from pipeline.bench.timed_step import TimedStep, build_timed_step, free_memory, prepare_bench_run
from pipeline.clips.plan import compute_worker_rows, divide_rows
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.hardware import choose_device
from pipeline.processes.allocator import keep_freed_memory
from pipeline.processes.isolation import count_cores
from pipeline.progress import show_progress
from pipeline.ray_cluster.resources import check_rows_per_worker
from pipeline.run_folder.contents import read_metrics
from pipeline.stream.batches import lay_out_blocks
from pipeline.training.gpu_memory import check_training
from pipeline.training.in_process import fit_in_process

NUM_LINES = 16
"""The number of lines of metrics in the steps that are timed; the first quarter of them is start-up."""
MIN_STEPS = 16
"""The number of steps that are timed at least in a run in this process, unless fewer are asked for."""
STEPS_AHEAD = 4
"""The number of steps that a run in this process decodes in advance."""


def bench_end_to_end(config: Config, steps: int, repeats: int, min_steps: int = MIN_STEPS) -> dict[str, Any]:
    """Measures the steps per second of the run on ``scale.workers`` workers (0: in this process), and two floors.

    Returns:
        ``end_to_end_over_ideal_ratio``: the run over as many processes that only compute, beside processes that only decode
        the same videos. Of these there is one for each core, or one for each core that computing leaves, or they work before
        the others do: whichever is fastest.
        ``end_to_end_over_alone_ratio``: the run over what it would reach if decoding and computing did not slow each other
        down, as they do on cores that share memory or units. For it both are measured one after the other.
    """
    steps, steps_after = choose_num_steps(config, steps, min_steps)
    actual, ideal, alone = [], [], []
    on_cpu = choose_device(config).type == "cpu"
    # on a GPU the run and the processes that compute have no room together: those start anew in each repeat
    with SeparateProcesses(config) if on_cpu else contextlib.nullcontext() as shared:
        for _ in show_progress(range(repeats), repeats, "repeats end to end"):
            actual.append(1 / measure_run(config, steps, steps_after))
            free_memory()
            with contextlib.nullcontext(shared) if shared else SeparateProcesses(config) as processes:
                decode, compute = processes.measure(0, processes.cores, steps), processes.measure(processes.workers, 0, steps)
                beside = {processes.cores, max(1, processes.cores - processes.workers * processes.threads)}
                together = [processes.measure(processes.workers, decoders, steps) for decoders in beside]
            ideal.append(1 / min(*together, decode + compute))
            busy = min(1.0, processes.workers * processes.threads / processes.cores) if on_cpu else 0.0
            alone.append(1 / max(compute, decode + busy * compute))
    return {
        "end_to_end_over_ideal": compute_ratio("end_to_end_over_ideal_ratio", actual, ideal),
        "end_to_end_over_alone": compute_ratio("end_to_end_over_alone_ratio", actual, alone),
    }


def choose_num_steps(config: Config, steps: int, min_steps: int = MIN_STEPS) -> tuple[int, int]:
    """Chooses how many steps are timed, and how many follow so that the last timed ones still share the cores with decoding."""
    if config.scale.workers == 0:
        return max(steps, min_steps), STEPS_AHEAD
    check_rows_per_worker(config)
    layout = lay_out_blocks(open_source(config)[0], config, 0, config.scale.workers)
    decoding = 2 * (os.cpu_count() or 1)  # blocks at once: Ray counts the machine's cores, not those that may be used
    timed_blocks = max(2 * MIN_BLOCKS, 4 * decoding // config.scale.workers)
    blocks_after = config.data.blocks_ahead + decoding + 2  # that wait, are being decoded, or have arrived
    return max(steps, timed_blocks * layout.steps_per_block), blocks_after * layout.steps_per_block


def measure_run(config: Config, steps: int, steps_after: int) -> float:
    """Trains the run and returns the seconds of a step by its own metrics, without the first quarter of ``steps``.

    ``steps_after`` further steps are trained and not counted.
    """
    every = max(1, steps // NUM_LINES)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = prepare_bench_run(config, folder, steps + steps_after, every, config.scale.workers)
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


class SeparateProcesses:
    """Processes that only compute, one for each worker, and processes that only decode, one for each core.

    Several computing processes average their gradients, which training on several workers cannot do without.
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
        """The numbers of processes that have computed and that have decoded before."""
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

    def measure(self, computing: int, decoding: int, steps: int) -> float:
        """Measures the seconds of a step if so many processes of each kind do ``steps`` steps together."""
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
    """Computes the steps of one worker."""
    timed = _build_step(tree, rank, workers, threads, folder)
    for _ in range(steps):
        timed.take()
    if timed.device.type == "cuda":
        torch.cuda.synchronize()


@cache
def _build_step(tree: str, rank: int, workers: int, threads: int, meeting: str) -> TimedStep:
    """Builds the step of worker ``rank`` once in this process; the workers find each other by a file in ``meeting``."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    config = Config.model_validate_json(tree)
    if choose_device(config).type == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = prepare_bench_run(config, folder, 1)
        rows = prepared.run.plan.rows_per_step
        timed = build_timed_step(prepared, compute_worker_rows([0], rows, rank, workers)[0])
    if workers == 1:
        return timed
    backend = "nccl" if timed.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}/meeting", rank=rank, world_size=workers)
    context = replace(timed.context, rank=rank, part_rows=[list(divide_rows(rows, workers))])
    return replace(timed, context=context, wrapped=DistributedDataParallel(timed.state.method))


def _decode(tree: str, steps: int, part: int, parts: int) -> None:
    """Decodes every ``parts``-th row of the steps, from row ``part`` on."""
    source = _open_source(tree)
    rows = np.arange(part, steps * source.plan.rows_per_step, parts)
    for start in range(0, len(rows), source.plan.rows_per_step):
        source.decode_rows(rows[start : start + source.plan.rows_per_step])


@cache
def _open_source(tree: str) -> VideoSource:
    return open_source(configure_bench(Config.model_validate_json(tree), 1))[0]
