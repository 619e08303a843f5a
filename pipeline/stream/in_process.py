"""Batches decoded by threads of the process that trains: no Ray, so a breakpoint anywhere works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from pipeline.clips.batch import Batch
from pipeline.clips.plan import worker_rows
from pipeline.clips.source import Source
from pipeline.config import Config
from pipeline.hardware import own_device
from pipeline.processes.isolation import num_cores
from pipeline.ray_cluster.resources import worker_cpus
from pipeline.stream.batches import to_batch

T = TypeVar("T")
R = TypeVar("R")


def local_batches(source: Source, config: Config, first_step: int, ahead: int = 2) -> Iterator[Batch]:
    """All batches from ``first_step`` on, decoded by threads of this process, ``ahead`` steps in advance: on all cores while
    the next batch is waited for, and otherwise on those that torch's threads, or the one that keeps a GPU at work, leave, but
    one at least."""
    steps, cores, on_gpu = range(first_step, config.train.steps), num_cores(), own_device(config).type == "cuda"
    busy = int(worker_cpus(cores, gpu=True)) if on_gpu else torch.get_num_threads()
    with Decoders(cores) as decoders:

        def decode(step: int) -> Batch:
            rows = worker_rows([step], source.plan.rows_per_step, 0, 1)[0]
            return to_batch(source.rows(rows, decoders), pin=on_gpu)

        for batch in map_ahead(decode, steps, ahead):
            decoders.allow(max(1, cores - busy))
            try:
                yield batch
            finally:
                decoders.allow(cores)


class Decoders(ThreadPoolExecutor):
    """Threads, as many of which work at a time as ``allow`` said last."""

    def __init__(self, number: int) -> None:
        super().__init__(number, thread_name_prefix="decoder")
        self._allowed, self._working, self._turn = number, 0, threading.Condition()

    def allow(self, number: int) -> None:
        """From now on; what more are doing is finished first."""
        with self._turn:
            self._allowed = number
            self._turn.notify_all()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As every executor's."""
        return super().submit(self._in_turn, fn, *args, **kwargs)

    def _in_turn(self, fn: Callable[..., R], *args: Any, **kwargs: Any) -> R:
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
    """``function`` of every item in turn, by ``ahead`` threads that are as many items in advance, and no more."""
    with ThreadPoolExecutor(ahead) as threads:
        pending: deque[Any] = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
