"""Lets SIGTERM and Ctrl-C end a run with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Self

from pipeline.errors import Stopped


class StopOnSignal:
    """A context in which the first SIGTERM or Ctrl-C sets ``number``, which asks to stop, and the second stops at once.

    Outside the main thread, where Python allows no handlers, signals are not handled: a study's trials stop with their study.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, what_follows: str = "stopping with a checkpoint after this step") -> None:
        self.what_follows = what_follows
        """What will happen, as the first signal prints it."""
        self.number: int | None = None
        """The number of the first signal; None before one came."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            raise Stopped(number, "stopped at once, without a checkpoint of the last steps; the same command continues")
        self.number = number
        name = signal.Signals(number).name
        print(f"{name}: {self.what_follows}; once more stops at once", file=sys.stderr, flush=True)


def make_stop_exception(number: int | None, step: int) -> Stopped | None:
    """Makes what to raise after a signal once the state of ``step`` is saved; None if ``number`` is None or 0."""
    return Stopped(number, f"stopped with a checkpoint at step {step}; the same command continues") if number else None
