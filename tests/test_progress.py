"""How far, how fast and how long still."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest

from pipeline import progress as module
from pipeline.progress import describe_pace, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def slow(count: int, seconds: float) -> Iterator[int]:
    for index in range(count):
        time.sleep(seconds)
        yield index


def test_a_log_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.03)
    out = io.StringIO()
    assert list(show_progress(slow(5, 0.02), 5, "probed", out)) == [0, 1, 2, 3, 4]
    text = out.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) >= 2
    assert "?" not in out.getvalue()
    assert all(line.startswith("probed ") and line.endswith(" left") for line in lines)
    assert lines[-1].startswith("probed 5/5  ")
    assert " a second  00:00 so far, 00:00 left" in lines[-1]


def test_a_log_file_is_not_filled_by_quick_work() -> None:
    out = io.StringIO()
    assert len(list(show_progress(range(10_000), 10_000, "probed", out))) == 10_000
    (line,) = out.getvalue().splitlines()
    assert line.startswith("probed 10000/10000")


def test_a_terminal_gets_a_bar_that_is_written_over() -> None:
    out = Terminal()
    assert list(show_progress(range(3), 3, "rendered", out)) == [0, 1, 2]
    assert out.getvalue().count("\n") == 1
    assert "rendered: 100%" in out.getvalue().rsplit("\r", 1)[1]
    assert "| 3/3  " in out.getvalue() and " a second  00:00 so far, 00:00 left" in out.getvalue()


def test_the_pace_is_said_in_words() -> None:
    assert [describe_pace(rate) for rate in (0.0, 41.26, 1.0, 0.0575)] == ["", "41.3 a second", "1.0 a second", "17.4 s each"]


def test_nothing_to_do() -> None:
    out = io.StringIO()
    assert list(show_progress((), 0, "probed", out)) == []
    assert out.getvalue().splitlines()[-1].startswith("probed 0/0")


def test_items_count_for_several_and_begin_where_earlier_work_ended() -> None:
    out = io.StringIO()
    assert list(show_progress([3, 4], 10, "evaluated", out, done=3, count=int)) == [3, 4]
    assert out.getvalue().splitlines()[-1].startswith("evaluated 10/10")


@pytest.mark.parametrize("is_kernel", [False, True])
def test_a_bar_is_drawn_in_a_notebook_but_not_where_its_kernel_is_only_imported(
    is_kernel: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernelapp = pytest.importorskip("ipykernel.kernelapp")
    monkeypatch.setattr(kernelapp.IPKernelApp, "initialized", lambda: is_kernel)
    assert list(show_progress(range(3), 3, "probed")) == [0, 1, 2]
    assert ("\r" in capsys.readouterr().err) is is_kernel
