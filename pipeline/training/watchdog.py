"""Watches from another thread what a worker is doing, so that a hang ends with a message."""

from __future__ import annotations

import faulthandler
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

FIRST_STEP_FACTOR = 10.0
"""The first step may take this many times the limit: it waits for imports, for decoders that start, and for compilation."""
WAITS_FOR = {
    "data": "its batch: a decoder or the storage of the videos does not answer, or no CPU is left for decode tasks",
    "step": "the end of the step: another worker does not answer, or the device hangs",
    "checkpoint": "the checkpoint before: its storage does not answer",
}


class WorkerProgress:
    """Which phase of which step a worker is in; the watchdog reads it."""

    def __init__(self) -> None:
        self.step, self.phase, self.changes = 0, "data", 0

    def enter(self, step: int, phase: str) -> None:
        """Notes that a phase of a step begins."""
        self.step, self.phase, self.changes = step, phase, self.changes + 1


class Watchdog:
    """Ends the process when it makes no progress for ``seconds``, with a message and the stack of every thread on stderr.

    Only time in which this process ran counts: a frozen container or a laptop that sleeps is not a hang. A thread cannot be
    interrupted in a collective or a system call, so the process ends; Ray starts it again from the newest checkpoint.
    """

    def __init__(self, progress: WorkerProgress, seconds: float | None, end: Callable[[str], None] | None = None) -> None:
        self.progress, self.seconds = progress, seconds
        self._end = end or end_this_process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self.seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self.seconds is not None
        tick = min(1.0, self.seconds / 10)
        changes, idle, is_first, last = self.progress.changes, 0.0, True, time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            idle, last = idle + min(now - last, 2 * tick), now
            if self.progress.changes != changes:
                is_first = is_first and self.progress.changes <= 3  # phases of the first step
                changes, idle = self.progress.changes, 0.0
            elif idle > self.seconds * (FIRST_STEP_FACTOR if is_first else 1.0):
                return self._end(self._message(idle))
        return None

    def _message(self, idle: float) -> str:
        step, phase = self.progress.step, self.progress.phase
        return (
            f"no progress for {idle:.0f} s (train.step_timeout_seconds) at step {step} on {platform.node()}: "
            f"waiting for {WAITS_FOR[phase]}"
        )


def end_this_process(message: str, with_stacks: bool = True) -> None:
    """Ends the process at once, with the message on stderr, and ``with_stacks`` the stack of every thread."""
    print(f"failed: {message}", file=sys.stderr, flush=True)
    if with_stacks:
        faulthandler.dump_traceback(all_threads=True)
    os._exit(1)
