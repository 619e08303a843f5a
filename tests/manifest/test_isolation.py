"""Worker processes that crash, hang or fail."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pipeline.errors import UserError
from pipeline.manifest.isolation import Lost, map_isolated


def act(word: str) -> str:
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "exit":
        os._exit(7)
    if word == "hang":
        time.sleep(60)
    if word == "mistake":
        raise UserError("mine")
    return f"{word} {os.getpid()}"


def test_crash_exit_and_hang_are_recorded_and_the_rest_goes_on() -> None:
    words = ["a", "crash", "b", "hang", "c", "exit", "d", "crash", "e"]
    start = time.monotonic()
    results = dict(map_isolated(act, words, processes=2, timeout_seconds=1.5))
    assert time.monotonic() - start < 20
    assert sorted(results) == list(range(len(words)))
    for index in (0, 2, 4, 6, 8):
        assert results[index].split()[0] == words[index]
    assert results[1] == results[7] == Lost("the process crashed (SIGSEGV)")
    assert results[3] == Lost("no result after 1.5 s")
    assert results[5] == Lost("the process ended with exit code 7")


def test_work_is_done_by_other_processes_that_end_with_it() -> None:
    pids = {int(result.split()[1]) for _, result in map_isolated(act, ["a"] * 6, processes=2)}
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_exceptions_arrive_here() -> None:
    with pytest.raises(UserError, match="mine"):
        list(map_isolated(act, ["a", "mistake"], processes=1))


def test_nothing_to_do() -> None:
    assert list(map_isolated(act, [])) == []
