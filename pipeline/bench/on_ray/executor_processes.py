"""What Ray's processes run for ``bench executor``: they import this file, and so no torch, which takes longer than the rest."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
from ray.data._internal.execution.execution_callback import ExecutionCallback

TASK_SECONDS = 1.0
"""The time of one decode task, which sleeps: the cores belong to the executor."""
CLOCK_SECONDS = 0.1
"""The shortest time between two times that the executor notes."""
CLOCK = "actnetformer.bench.clock"
"""The name under which the dataset's context has the path of the executor's clock."""


class ThreadClock(ExecutionCallback):  # type: ignore[misc]
    """Writes time and CPU time of the executor's thread, in seconds, into the file that the dataset's context names."""

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Writes a line; Ray calls it in each round of the executor's loop."""
        now = time.monotonic()
        if now - self._last >= CLOCK_SECONDS:
            self._last = now
            # Ray ends the executor some time after the measurement, when the file's folder is gone; the mode "a" would make the
            # file again while the folder is removed, which then fails
            with suppress(FileNotFoundError), open(executor._data_context.get_config(CLOCK), "r+", encoding="ascii") as file:
                file.seek(0, os.SEEK_END)
                file.write(f"{now} {time.thread_time()}\n")


def sleep(_shared: None, _block: int) -> dict[str, Any]:
    """Returns a small block after ``TASK_SECONDS``."""
    time.sleep(TASK_SECONDS)
    return {"row": np.zeros((1, 4), np.uint8)}


class BlockReader:
    """Takes the blocks of a shard in a thread, and counts them."""

    def __init__(self) -> None:
        self._count = 0

    def start(self, shard: Any) -> None:
        """Starts to take blocks of a ``ray.data.DataIterator``."""
        threading.Thread(target=self._read, args=(shard,), daemon=True).start()

    def count(self) -> int:
        """Returns how many blocks have come."""
        return self._count

    def _read(self, shard: Any) -> None:
        for _ in shard.iter_batches(batch_size=None):
            self._count += 1
