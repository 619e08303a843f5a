"""Child processes that crash, hang or fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import UserError
from pipeline.processes.isolation import ChildProcess, ProcessFailure, ProcessLimits, map_in_processes


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
    results = dict(map_in_processes(act, words, processes=2, timeout_seconds=1.5))
    assert time.monotonic() - start < 20
    assert sorted(results) == list(range(len(words)))
    for index in (0, 2, 4, 6, 8):
        assert results[index].split()[0] == words[index]
    assert results[1] == results[7] == ProcessFailure("the process crashed (SIGSEGV)")
    assert results[3] == ProcessFailure("no result after 1.5 s")
    assert results[5] == ProcessFailure("the process ended with exit code 7")


def test_work_is_done_by_other_processes_that_end_with_it() -> None:
    pids = {int(result.split()[1]) for _, result in map_in_processes(act, ["a"] * 6, processes=2)}
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_exceptions_of_the_function_are_raised_in_the_parent() -> None:
    with pytest.raises(UserError, match="mine"):
        list(map_in_processes(act, ["a", "mistake"], processes=1))


def test_a_signal_that_asks_the_parent_to_stop_ends_no_work_of_its_children() -> None:
    """Ctrl-C reaches a terminal's whole process group, and `ray job stop` sends SIGTERM to all descendants of a command: a
    video that a child decodes would be taken for a damaged one, and the run would go on with another."""
    child = ChildProcess(act, ProcessLimits(30.0))
    try:
        pid = int(child.call("a").split()[1])
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
            assert child.call("b") == f"b {pid}"
    finally:
        child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_to_do() -> None:
    assert list(map_in_processes(act, [])) == []


def test_time_in_which_the_machine_is_frozen_does_not_count() -> None:
    """A process and its child are stopped for longer than the time limit, as when a container is frozen."""
    code = "import sys; from tests.processes.test_isolation import linger; linger()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "slept 0.3\n"


def linger() -> None:
    child = ChildProcess(nap, ProcessLimits(seconds=3.0))
    child.call(0.0)
    print("begun", flush=True)
    print(child.call(0.3), flush=True)


def nap(seconds: float) -> str:
    until = time.process_time() + seconds  # of work: sleep would be over when the machine goes on
    while time.process_time() < until:
        pass
    return f"slept {seconds}"


def slow(word: str, seconds: float) -> str:
    time.sleep(seconds)
    return word


@pytest.mark.parametrize("moment", [0.01, 2.0])  # while the process starts, and while it works
def test_a_call_after_an_interrupted_one_returns_its_own_result(moment: float) -> None:
    """Ray cancels decode tasks by an exception at any moment. The next call once returned the result of the canceled one, and a
    run that had lost a worker trained on clips of other videos."""

    class Canceled(BaseException):
        pass

    def cancel(*_: object) -> None:
        raise Canceled

    before = signal.signal(signal.SIGALRM, cancel)
    child = ChildProcess(slow, ProcessLimits(60.0))
    try:
        signal.setitimer(signal.ITIMER_REAL, moment)
        with pytest.raises(Canceled):
            child.call("one", 4.0)
        assert child.call("two", 0.0) == "two"
        assert child.call("three", 0.0) == "three"
    finally:
        signal.signal(signal.SIGALRM, before)
        child.stop()


def take_megabytes(count: int) -> int:
    return len(bytearray(count * 2**20))


def test_what_asks_for_more_address_space_than_it_may_have_gets_an_error_and_the_process_goes_on() -> None:
    child = ChildProcess(take_megabytes, ProcessLimits(seconds=20.0, address_space_bytes=300 * 2**20))
    assert child.call(100) == 100 * 2**20
    with pytest.raises(MemoryError):
        child.call(400)
    assert child.call(100) == 100 * 2**20
    child.stop()
