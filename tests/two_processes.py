"""Two real processes, as two workers of a run; and none of Ray's where there is nothing to do."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def run_two(target: Callable[[int, str, str], None], folder: Path, seconds: float = 60) -> None:
    """Call ``target(rank, file to meet at, folder for results)`` in both. Neither outlives the call."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=target, args=(rank, str(folder / "meeting"), str(folder))) for rank in (0, 1)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(seconds)
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Within, a study or search that joins or starts a cluster fails."""

    def refuse() -> None:
        raise AssertionError("Ray was started")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.studies.on_tune.connect", refuse)
        yield
