"""Progress of long work on stderr, with rate and time left: a bar in terminals and notebooks, a line at times in log files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
LOG_SECONDS = 10.0
"""Time between two lines of a log file."""


def show_progress(
    items: Iterable[T],
    total: int,
    what: str,
    stream: TextIO | None = None,
    done: int = 0,
    count: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Passes ``items`` on and shows how far they are, as ``what`` (a past participle: "probed"), on ``stream`` or stderr.

    ``done`` of the ``total`` were done before, and an item counts as ``count(item)`` of them.
    """
    out = stream or sys.stderr
    words: dict[str, Any] = {"total": total, "desc": what, "initial": done}
    if out.isatty() or _is_in_notebook():
        words |= {"file": out if out.isatty() else None, "dynamic_ncols": True}
    else:
        line = "{desc} {n_fmt}/{total_fmt}  {rate_fmt}  {elapsed} so far, {remaining} left"
        words |= {"file": _Lines(out), "mininterval": LOG_SECONDS, "miniters": 1, "bar_format": line}
    with tqdm(**words) as bar:
        for item in items:
            yield item
            bar.update(count(item))


def _is_in_notebook() -> bool:
    """Returns whether this process is a notebook's kernel; who executes notebooks imports ``ipykernel``, too."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


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
