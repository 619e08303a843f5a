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
    figures = "{n_fmt}/{total_fmt}  {pace}  {elapsed} so far, {remaining} left"
    if out.isatty() or _is_in_notebook():
        drawn = f"{{l_bar}}{{bar}}| {figures}"
        words |= {"file": out if out.isatty() else None, "dynamic_ncols": True, "bar_format": drawn}
    else:
        words |= {"file": _Lines(out), "mininterval": LOG_SECONDS, "miniters": 1, "bar_format": f"{{desc}} {figures}"}
    with _Bar(**words) as bar:
        for item in items:
            yield item
            bar.update(count(item))


def describe_pace(items_per_second: float) -> str:
    """Returns "3.1 a second", or "17.4 s each" of what takes longer than a second."""
    if not items_per_second:
        return ""
    return f"{items_per_second:.1f} a second" if items_per_second >= 1 else f"{1 / items_per_second:.1f} s each"


class _Bar(tqdm):  # type: ignore[misc] # tqdm.auto has no types
    """tqdm's bar, which says the rate in words: its own "it/s" means iterations, and here they are videos or clips."""

    @property
    def format_dict(self) -> Any:
        known = super().format_dict
        so_far = (known["n"] - known["initial"]) / known["elapsed"] if known["elapsed"] else 0.0
        return known | {"pace": describe_pace(known["rate"] or so_far)}


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
