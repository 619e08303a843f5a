"""Two real processes, as two workers of a run; and none of Ray's where there is nothing to do."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import pytest

SHARED = pytest.mark.xdist_group("two processes")
"""For test files that call ``run_two``: they share the two processes, whose imports take seconds."""


def run_two(target: Callable[[int, str, str], None], folder: Path, seconds: float = 60) -> None:
    """Call ``target(rank, file to meet at, folder for results)`` in both processes, and raise what it raises in one.

    The processes wait for the next call. After a failure or a timeout they are killed, because one may wait for the other.
    """
    pool = _start_two()
    try:
        for result in [pool.submit(target, rank, str(folder / "meeting"), str(folder)) for rank in (0, 1)]:
            result.result(seconds)
    except BaseException:
        _start_two.cache_clear()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(pool._processes.values()):
            process.kill()
        raise


@cache
def _start_two() -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    # they search for garbage as seldom as this process
    return ProcessPoolExecutor(2, mp_context=spawn, initializer=gc.set_threshold, initargs=gc.get_threshold())


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Within, a study or search that joins or starts a cluster fails."""

    def refuse() -> None:
        raise AssertionError("Ray was started")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.studies.on_tune.connect", refuse)
        yield
