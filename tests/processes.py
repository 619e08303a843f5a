"""Two real processes, as two workers of a run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path


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
