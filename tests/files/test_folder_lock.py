"""Locks of folders, held by real processes: which one gets a lock, which is refused, and which takes a lock over.

Another machine is a process with another host name and boot id, which is all that tells machines apart in a lock file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock._lease
import pytest

from pipeline.errors import UserError
from pipeline.files import folder_lock
from pipeline.files.folder_lock import LOCK, FolderInUse, LockFile, lock_file, lock_folder

HOLDER = """
import socket, sys, time
from pathlib import Path
import filelock._identity
host, boot = sys.argv[2:4]
socket.gethostname = lambda: host or sys.argv[4]
filelock._identity._BOOT_ID = int(boot) or filelock._identity._BOOT_ID
from pipeline.files import folder_lock, lock_holder
lock_holder.platform.node = socket.gethostname
folder_lock.HEARTBEAT_SECONDS, folder_lock.DEAD_SECONDS = 0.3, 1.5
with folder_lock.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


TAKER = """
import sys
from pathlib import Path
from pipeline.files import folder_lock
while sys.stdin.readline():
    lock = folder_lock.LockFile(Path(sys.argv[1]) / folder_lock.LOCK)
    print("yes" if lock.acquire() else "no", flush=True)
    sys.stdin.readline()
    lock.release()
    print("free", flush=True)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.3)
    monkeypatch.setattr(folder_lock, "DEAD_SECONDS", 1.5)


@contextlib.contextmanager
def holder(folder: Path, host: str = "", boot: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that holds the folder's lock; with ``host`` and ``boot`` it appears to run on another machine."""
    words = [sys.executable, "-c", HOLDER, str(folder), host, str(boot), os.uname().nodename]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(folder: Path) -> str:
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(FolderInUse) as caught, lock_folder(folder):
        raise AssertionError("both have it")
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before
    return str(caught.value)


def test_a_second_writer_is_refused_with_the_name_of_the_first_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with holder(folder) as first:
        text = refused(folder)
        assert text.startswith(f"{folder} is being written by another process: process {first.pid} on {os.uname().nodename}")
        assert ", of user " in text and ", since 20" in text and "`-c" in text and text.endswith("or choose another folder")


def test_a_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
        begun = time.monotonic()
        with lock_folder(tmp_path):
            assert time.monotonic() - begun < folder_lock.DEAD_SECONDS / 2
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_process_on_this_machine_keeps_its_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)
        time.sleep(folder_lock.DEAD_SECONDS + 0.5)
        assert f"process {first.pid}" in refused(tmp_path)


@pytest.mark.parametrize("host", ["elsewhere", ""], ids=["another name", "the same name"])
def test_the_lock_of_another_machine_is_taken_over_only_when_it_is_not_refreshed(tmp_path: Path, host: str) -> None:
    """A machine of the same name may be a replaced pod, whose process ids mean nothing here."""
    with holder(tmp_path, host, boot=12345) as first:
        assert f"process {first.pid} on {host or os.uname().nodename}" in refused(tmp_path)
        first.kill()
        first.wait()
        begun = time.monotonic()
        with lock_folder(tmp_path):
            assert time.monotonic() - begun > 0.9 * folder_lock.DEAD_SECONDS


def test_a_process_whose_lock_was_taken_over_while_it_was_stopped_ends(tmp_path: Path) -> None:
    with holder(tmp_path, "elsewhere", boot=12345) as first:
        first.send_signal(signal.SIGSTOP)
        with lock_folder(tmp_path):
            first.send_signal(signal.SIGCONT)
            error = first.communicate(timeout=30)[1]
            assert first.returncode == 1
            assert f"failed: this process lost the lock of {tmp_path}, because" in error
            assert f"; now it is held by process {os.getpid()} on " in error


def test_a_folder_that_is_removed_ends_its_writer(tmp_path: Path) -> None:
    with holder(tmp_path / "one") as first:
        for path in (tmp_path / "one").iterdir():
            path.unlink()
        error = first.communicate(timeout=30)[1]
        assert f"failed: this process lost the lock of {tmp_path / 'one'}: it was deleted, or " in error
        assert "stood still" not in error  # it did not


def test_a_lock_that_cannot_be_reached_for_a_while_is_kept_and_refreshed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on NFS, when the server does not respond for longer than DEAD_SECONDS."""
    ended: list[str] = []
    monkeypatch.setattr(folder_lock, "end_process", ended.append)
    touch, read, utime = filelock._lease.touch, Path.read_bytes, os.utime
    away = [True]

    def unless_away(action: Any) -> Any:
        def run(path: Any, *words: Any, **named: Any) -> Any:
            if away[0] and Path(path).name == LOCK:
                raise OSError(errno.EIO, "Input/output error")
            return action(path, *words, **named)

        return run

    monkeypatch.setattr(filelock._lease, "touch", unless_away(touch))
    monkeypatch.setattr(Path, "read_bytes", unless_away(read))
    monkeypatch.setattr(os, "utime", unless_away(utime))
    with lock_folder(tmp_path):
        before = (tmp_path / LOCK).stat().st_mtime_ns
        time.sleep(2 * folder_lock.DEAD_SECONDS)
        assert not ended and (tmp_path / LOCK).stat().st_mtime_ns == before
        away[0] = False
        time.sleep(3 * folder_lock.HEARTBEAT_SECONDS)
        assert (tmp_path / LOCK).stat().st_mtime_ns > before
    assert not ended and not list(tmp_path.iterdir())
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"the lock file {tmp_path / LOCK} could not be written ([Errno 5] Input/output error); the command "
                        "continues, and tries again every 0.3 s"]  # fmt: skip


def test_without_patience_another_machine_counts_as_alive(tmp_path: Path) -> None:
    with holder(tmp_path, "elsewhere", boot=12345) as first:
        first.kill()
        first.wait()
        lock = LockFile(tmp_path / LOCK)
        assert not lock.acquire(until_certain=False)
        assert lock.acquire()
        lock.release()


def test_a_folder_can_be_locked_again_by_the_process_that_holds_its_lock(tmp_path: Path) -> None:
    with lock_folder(tmp_path), lock_folder(tmp_path / ".." / tmp_path.name):
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()


def test_an_empty_lock_file_is_no_lock(tmp_path: Path) -> None:
    """Its writer was killed after creating the file and before writing its name into it."""
    (tmp_path / LOCK).touch()
    with lock_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_one_of_many_processes_takes_over_a_lock(tmp_path: Path) -> None:
    """Four processes find the lock of a dead one at the same moment, sixteen times."""
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
    words = [sys.executable, "-c", TAKER, str(tmp_path)]
    takers = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    dead = (tmp_path / LOCK).read_bytes()
    try:
        for _ in range(16):
            (tmp_path / LOCK).write_bytes(dead)
            for taker in takers:
                assert taker.stdin is not None
                taker.stdin.write("take\n")
                taker.stdin.flush()
            answers = sorted(taker.stdout.readline() for taker in takers if taker.stdout is not None)
            assert answers == ["no\n"] * 3 + ["yes\n"]
            for taker in takers:
                assert taker.stdin is not None
                taker.stdin.write("let go\n")
                taker.stdin.flush()
            assert [taker.stdout.readline() for taker in takers if taker.stdout is not None] == ["free\n"] * 4
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()


def test_a_folder_that_cannot_be_written_into_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below_a_file = tmp_path / "file" / "run"
    with pytest.raises(UserError, match=r"folder .*file/run cannot be made or written into"), lock_folder(below_a_file):
        pass
    with pytest.raises(UserError, match=r"folder .*/file cannot be made or written into: File exists"):
        lock_file(tmp_path / "file" / ".study.lock", "the study").__enter__()
    with pytest.raises(UserError, match=r"folder /sys cannot be made or written into: "):  # where not even root may
        lock_file(Path("/sys/.study.lock"), "the study").__enter__()


def test_a_loop_of_symbolic_links_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for folder in (loop, loop / "run"):
        with pytest.raises(UserError, match=r"folder .*/loop.* cannot be made or written into: Symlink loop"):
            lock_folder(folder).__enter__()
