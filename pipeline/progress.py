"""Progress of long work on stderr, with rate and time left: a bar in terminals and notebooks, a line at times in log files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
LOG_SECONDS = 10.0
"""Between two lines of a log file."""


def progress(items: Iterable[T], total: int, what: str, stream: TextIO | None = None) -> Iterator[T]:
    """Passes ``items`` on and shows how far they are, as ``what`` (a past participle: "probed"), on ``stream`` or stderr."""
    out = stream or sys.stderr
    if out.isatty() or "ipykernel" in sys.modules:
        yield from tqdm(items, total=total, desc=what, file=out if out.isatty() else None, dynamic_ncols=True)
        return
    line = "{desc} {n_fmt}/{total_fmt}  {rate_fmt}  {elapsed} so far, {remaining} left"
    yield from tqdm(items, total=total, desc=what, file=_Lines(out), mininterval=LOG_SECONDS, miniters=1, bar_format=line)


class _Lines:
    """A log file to tqdm, which would write all its lines into one, behind carriage returns."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.has_begun = out, False

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and self.has_begun:  # the first line comes before anything is done, and has neither rate nor time left
            self.out.write(f"{line}\n")
        self.has_begun = self.has_begun or bool(line)

    def flush(self) -> None:
        self.out.flush()
