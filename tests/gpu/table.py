"""Rows of the check, their goals, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


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
    """A value that must not be larger than a limit; one that is no number misses it."""
    return Row(name, value, unit, f"at most {limit:g}", value <= limit, correctness=correctness, note=note)


def at_least(name: str, value: float, limit: float, unit: str = "", note: str = "") -> Row:
    """A value that must not be smaller than a limit."""
    return Row(name, value, unit, f"at least {limit:g}", value >= limit, note=note)


def measured(name: str, values: Sequence[float], unit: str) -> Row:
    """The median of repeated measurements."""
    return Row(name, statistics.median(values), unit, n=len(values), spread=(min(values), max(values)))


def lines(rows: Iterable[Row]) -> list[str]:
    """One line a row, for the terminal."""
    return [f"  {row.name:58} {_shown(row.value):>12} {row.unit:9} {_verdict(row)}{_more(row)}" for row in rows]


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
