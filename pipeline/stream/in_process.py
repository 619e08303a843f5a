"""Batches that are decoded by threads of the training process itself: without Ray, so a breakpoint anywhere works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from pipeline.clips.batch import Batch
from pipeline.clips.plan import compute_worker_rows
from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.hardware import choose_device
from pipeline.processes.isolation import count_cores
from pipeline.ray_cluster.resources import compute_worker_cpus
from pipeline.stream.batches import to_batch

T = TypeVar("T")
R = TypeVar("R")


def load_batches(source: VideoSource, config: Config, first_step: int, ahead: int = 2) -> Iterator[Batch]:
    """Yields all batches from ``first_step`` on, decoded by threads of this process, ``ahead`` steps in advance.

    While training waits for a batch, the threads use all cores. While it computes, they use the cores that torch's threads,
    or the thread that feeds the GPU, leave free, but at least one.
    """
    steps, cores, on_gpu = range(first_step, config.train.steps), count_cores(), choose_device(config).type == "cuda"
    busy = int(compute_worker_cpus(cores, gpu=True)) if on_gpu else torch.get_num_threads()
    with Decoders(cores) as decoders:

        def decode(step: int) -> Batch:
            rows = compute_worker_rows([step], source.plan.rows_per_step, 0, 1)[0]
            return to_batch(source.decode_rows(rows, decoders), pin=on_gpu)

        for batch in map_ahead(decode, steps, ahead):
            decoders.allow(max(1, cores - busy))
            try:
                yield batch
            finally:
                decoders.allow(cores)


class Decoders(ThreadPoolExecutor):
    """A pool of ``number`` threads, of which only some may work at the same time; ``allow`` changes how many."""

    def __init__(self, number: int) -> None:
        super().__init__(number, thread_name_prefix="decoder")
        self._allowed, self._working, self._turn = number, 0, threading.Condition()

    def allow(self, number: int) -> None:
        """Lets ``number`` threads work from now on. Threads beyond that finish what they are doing first."""
        with self._turn:
            self._allowed = number
            self._turn.notify_all()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Schedules ``fn(*args, **kwargs)``, as ``Executor.submit`` does."""
        return super().submit(self._run_in_turn, fn, *args, **kwargs)

    def _run_in_turn(self, fn: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        with self._turn:
            self._turn.wait_for(lambda: self._working < self._allowed)
            self._working += 1
        try:
            return fn(*args, **kwargs)
        finally:
            with self._turn:
                self._working -= 1
                self._turn.notify()


def map_ahead(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yields ``function(item)`` for every item in order, computed by ``ahead`` threads at most ``ahead`` items in advance."""
    with ThreadPoolExecutor(ahead) as threads:
        pending: deque[Any] = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
