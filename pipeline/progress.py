"""One line of progress on stderr, with rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], total: int, what: str, stream: TextIO | None = None) -> Iterator[T]:
    """Pass ``items`` on and say how far they are: every half second on a terminal, every 10 s in a log file."""
    out = stream or sys.stderr
    pause = 0.5 if out.isatty() else 10.0
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= pause and done < total:
            last = now
            left = (now - start) / done * (total - done)
            _write(out, f"{what} {done}/{total}{_rate(done, now - start)}  {_clock(left)} left", "")
    seconds = time.monotonic() - start
    _write(out, f"{what} {done}/{total}{_rate(done, seconds)}  in {_clock(seconds)}", "\n")


def _write(out: TextIO, text: str, end: str) -> None:
    if out.isatty():
        out.write(f"\r\x1b[K{text}{end}")
    else:
        out.write(f"{text}\n")
    out.flush()


def _rate(done: int, seconds: float) -> str:
    """In the unit that makes it at least 1, if one does."""
    rate = done / max(seconds, 1e-9)
    times, unit = next(((n, name) for n, name in ((1, "s"), (60, "min")) if rate * n >= 1), (3600, "h"))
    return f"  {rate * times:.1f}/{unit}" if done else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
