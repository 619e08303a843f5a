"""Worker processes that may crash or hang without taking the rest of the work with them.

Video libraries are C code on files from anywhere: their issue trackers report crashes and endless loops.
``concurrent.futures`` gives up the whole pool after one crash; here the item is named and the others go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any


@dataclass(frozen=True)
class Lost:
    """Stands for the result of an item whose process crashed or was stopped."""

    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    item: int = -1
    deadline: float = 0.0


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_isolated(
    function: Callable[..., Any], items: Sequence[Any], processes: int | None = None, timeout_seconds: float = 120.0
) -> Iterator[tuple[int, Any]]:
    """Yield (index, function(item)) in order of completion; ``Lost`` where the process crashed or ran out of time.

    ``function`` must be importable by name. What it raises is raised here: only crashes and hangs are swallowed.
    """
    context = _context(function.__module__)
    todo = iter(range(len(items)))
    workers = [_start(context, function) for _ in range(min(processes or num_cores(), len(items)))]
    try:
        for worker in workers:
            _give(worker, next(todo, -1), items, timeout_seconds)
        while any(worker.item >= 0 for worker in workers):
            for number, worker in _ready(workers):
                index, result = worker.item, _take(worker, timeout_seconds)
                if isinstance(result, Lost):
                    workers[number] = worker = _start(context, function)
                _give(worker, next(todo, -1), items, timeout_seconds)
                yield index, result
    finally:
        for worker in workers:
            _stop(worker)


def _context(module: str) -> BaseContext:
    # fork copies the locks of other threads (torch, Arrow, Ray) in whatever state they are
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _start(context: BaseContext, function: Callable[..., Any]) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, function), daemon=True)  # type: ignore[attr-defined]
    process.start()
    there.close()
    return _Worker(process, here)


def _serve(pipe: Connection, function: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            item = pipe.recv()
            try:
                pipe.send(function(item))
            except Exception as error:
                pipe.send(_Raised(error))


@dataclass(frozen=True)
class _Raised:
    error: Exception


def _give(worker: _Worker, index: int, items: Sequence[Any], timeout_seconds: float) -> None:
    worker.item = index
    worker.deadline = time.monotonic() + timeout_seconds
    if index >= 0:
        with contextlib.suppress(OSError):  # it died while idle: its closed pipe is noticed by the next wait
            worker.pipe.send(items[index])


def _ready(workers: list[_Worker]) -> list[tuple[int, _Worker]]:
    busy = [worker for worker in workers if worker.item >= 0]
    pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
    pipes = wait([worker.pipe for worker in busy], timeout=pause)
    now = time.monotonic()
    return [(n, w) for n, w in enumerate(workers) if w.item >= 0 and (w.pipe in pipes or w.deadline <= now)]


def _take(worker: _Worker, timeout_seconds: float) -> Any:
    if not worker.pipe.poll():
        _stop(worker)
        return Lost(f"no result after {timeout_seconds:g} s")
    try:
        result = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode
        _stop(worker)
        return Lost(f"the process crashed ({_signal_name(-code)})" if code < 0 else f"the process ended with exit code {code}")
    if isinstance(result, _Raised):
        raise result.error
    return result


def _signal_name(number: int) -> str:
    return next((s.name for s in signal.Signals if s.value == number), f"signal {number}")


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
