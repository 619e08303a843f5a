"""One line that says how far, how fast and how long still."""

from __future__ import annotations

import io

import pytest

from pipeline import progress as module
from pipeline.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test lets pass."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def follow(clock: list[float], out: io.StringIO, total: int, seconds: float) -> str:
    for _ in progress(range(total), total, "probed", out):
        clock[0] += seconds
    return out.getvalue()


def test_a_log_file_gets_a_line_every_ten_seconds(clock: list[float]) -> None:
    assert follow(clock, io.StringIO(), 8, 5.0).splitlines() == [
        "probed 2/8  12.0/min  0:30 left",
        "probed 4/8  12.0/min  0:20 left",
        "probed 6/8  12.0/min  0:10 left",
        "probed 8/8  12.0/min  in 0:40",
    ]


def test_a_terminal_gets_one_line_that_is_written_over(clock: list[float]) -> None:
    text = follow(clock, Terminal(), 3, 1800.0)
    assert text.split("\r\x1b[K")[1:] == [
        "probed 1/3  2.0/h  1:00:00 left",
        "probed 2/3  2.0/h  30:00 left",
        "probed 3/3  2.0/h  in 1:30:00\n",
    ]


def test_nothing_to_do(clock: list[float]) -> None:
    assert follow(clock, io.StringIO(), 0, 1.0) == "probed 0/0  in 0:00\n"
