"""Rows of the check, their goals, and how they are printed."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One figure or one thing that must hold."""

    name: str
    value: float | str | None
    """What was measured; None where it could not be, which ``note`` explains."""
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    """Whether the goal is met; None where there is none, or nothing was measured."""
    n: int = 1
    """Measurements behind the value, their median."""
    spread: tuple[float, float] | None = None
    """Smallest and largest of them."""
    correctness: bool = False
    """Whether missing the goal makes the check fail."""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def must(name: str, holds: bool, note: str = "", value: float | str | None = None, goal: str = "") -> Row:
    """A row without which the check fails."""
    told = value if value is not None else ("yes" if holds else "no")
    return Row(name, told, goal=goal, met=holds, correctness=True, note=note)


def at_most(name: str, value: float, limit: float, unit: str = "", correctness: bool = False, note: str = "") -> Row:
    """A value that must not be larger than a limit; one that is not a number misses it."""
    return Row(name, value, unit, f"at most {limit:g}", value <= limit, correctness=correctness, note=note)


def at_least(name: str, value: float, limit: float, unit: str = "", note: str = "") -> Row:
    """A value that must not be smaller than a limit."""
    return Row(name, value, unit, f"at least {limit:g}", value >= limit, note=note)


def measured(name: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    """The median of repeated measurements."""
    return Row(name, statistics.median(values), unit, n=len(values), spread=(min(values), max(values)), note=note)


def guarded(what: str, check: Callable[[], Iterable[Row]], may_need_more_memory: bool = False) -> Iterator[Row]:
    """Rows of a check. An exception ends it by a failed row that says where it was raised, and the caller goes on with the next
    check; with ``may_need_more_memory`` a device that is too small for it is a missed goal only."""
    try:
        yield from check()
    except Exception as error:  # whatever it is: one check must not cost the others
        note = f"{error_in_a_line(error)} ({_where(error)})"
        if may_need_more_memory and isinstance(error, torch.OutOfMemoryError):
            yield Row(what, None, goal="fits the device's memory", met=False, note=note)
        else:
            yield must(what, False, note, "raised")


def if_time(what: str, check: Callable[[], Iterable[Row]], needed: float, end: float) -> Iterator[Row]:
    """Rows of a check that takes some ``needed`` seconds, or a missed goal if they are not left until ``end`` (of
    ``time.monotonic``)."""
    left = end - time.monotonic()
    if left >= needed:
        yield from check()
    else:
        yield Row(what, None, goal="measured", met=False, note=f"needs some {needed:.0f} s, {max(0.0, left):.0f} s were left")


def error_in_a_line(error: Exception) -> str:
    """Its type and the beginning of its first line, which may be empty."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def lines(rows: Iterable[Row]) -> list[str]:
    """One line a row, for the terminal."""
    return [f"  {row.name:76} {_shown(row.value):>12} {row.unit:9} {_verdict(row)}{_more(row)}" for row in rows]


def _shown(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _verdict(row: Row) -> str:
    if row.met is None:
        return ""
    goal = f" ({row.goal})" if row.goal else ""
    return ("met" if row.met else "FAILED" if row.correctness else "missed") + goal


def _more(row: Row) -> str:
    spread = f"  [{row.spread[0]:.4g}-{row.spread[1]:.4g}, n {row.n}]" if row.spread else ""
    return spread + (f"  {row.note}" if row.note else "")
