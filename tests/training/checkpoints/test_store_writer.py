"""A run on an S3 store has one writer, whatever happens to its lock and to the store."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs import train
from jobs.command import run
from pipeline.errors import RunFailed
from pipeline.files import folder_lock, storage, store_lock
from pipeline.files.lock_holder import LockHolder
from pipeline.run_folder import run_store
from pipeline.training.checkpoints import checkpoint
from tests.object_store import ObjectStore
from tests.training.checkpoints.test_checkpoint import state


def held_elsewhere(store: str, beat: int) -> None:
    """The lock of a process on another machine."""
    since = "2026-11-28T08:00:00+00:00"
    holder = LockHolder("elsewhere", 7, "me", "python -m jobs.train", since, "t", "there", beat)
    storage.write_bytes(f"{store}/.lock", json.dumps(asdict(holder)).encode())


def test_a_run_on_a_store_has_one_writer(
    s3: ObjectStore, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused while the other is alive, taken over when it was silent, and at once where it was of this machine."""
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.4)
    monkeypatch.setattr(folder_lock, "DEAD_SECONDS", 1.0)
    store, staging = "s3://runs/shared/tiny", f"run.staging_path={tmp_path}"
    words = ["--config", str(tiny / "tiny.yaml"), "run.storage_path=s3://runs/shared", staging, "--max-steps", "1"]
    over = threading.Event()

    def beats() -> None:
        for beat in itertools.count(1):
            if over.wait(0.2):
                return
            held_elsewhere(store, beat)

    held_elsewhere(store, 0)
    other = threading.Thread(target=beats)
    other.start()
    try:
        assert run(train.main, words) == 2
    finally:
        over.set()
        other.join()
    error = capsys.readouterr().err
    assert f"{store} is being written by another process: process 7 on elsewhere, of user me, since 2026-11-28T08:00" in error
    assert storage.list_names(store) == [".lock"] and not list(tmp_path.rglob("*.yaml"))
    begun = time.monotonic()
    assert run(train.main, words) == 0
    assert time.monotonic() - begun > folder_lock.DEAD_SECONDS
    assert ".lock" not in storage.list_names(store) and "checkpoint_000001" in storage.list_names(store)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why the process would have ended."""
    words: list[str] = []
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(folder_lock, "DEAD_SECONDS", 0.5)
    monkeypatch.setattr(folder_lock, "end_process", words.append)
    return words


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == store_lock.__name__]


def beat_of(store: str) -> int:
    return int(json.loads(storage.read_bytes(f"{store}/.lock"))["beat"])


def wait_for_beats(store: str, count: int = 2) -> None:
    begun, deadline = beat_of(store), time.monotonic() + 20
    while beat_of(store) < begun + count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_lost_its_lock_on_a_store_ends(s3: ObjectStore, tmp_path: Path, told: list[str]) -> None:
    store = "s3://runs/lost-lock"
    with store_lock.lock_store(store, tmp_path):
        wait_for_beats(store)
        assert not told
        for beat in range(100):  # a heartbeat under way may come after it
            held_elsewhere(store, beat)
            time.sleep(0.1)
            if told:
                break
    who = "process 7 on elsewhere, of user me, since 2026-11-28T08:00:00+00:00, `python -m jobs.train`"
    why = "it was not refreshed for 0.5 s, or was deleted"
    assert told == [f"this process lost the lock of {store}, because {why}; now it is held by {who}"]
    assert json.loads(storage.read_bytes(f"{store}/.lock"))["pid"] == 7  # it is not ours to delete


def test_an_outage_of_the_store_ends_nobody(
    s3: ObjectStore, tmp_path: Path, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is longer than a lock lives without being refreshed, and told once; then the lock is refreshed as before."""
    store = "s3://runs/outage"
    with store_lock.lock_store(store, tmp_path):
        wait_for_beats(store)
        s3.failures["outage/.lock"] = 10**6
        time.sleep(4 * folder_lock.DEAD_SECONDS)
        assert not told and s3.failures["outage/.lock"] < 10**6
        s3.failures.clear()
        wait_for_beats(store)
        text = f"the lock file {store}/.lock could not be written ({store}/.lock: tried {storage.ATTEMPTS} times: "
        assert [message[: len(text)] for message in warnings(caplog)] == [text]
    assert not told and ".lock" not in storage.list_names("s3://runs")


def test_who_was_taken_over_during_an_outage_ends_when_it_is_over(s3: ObjectStore, tmp_path: Path, told: list[str]) -> None:
    store = "s3://runs/cut-off"
    with store_lock.lock_store(store, tmp_path):
        wait_for_beats(store)
        s3.failures["cut-off/.lock"] = 10**6
        time.sleep(0.5)  # a heartbeat under way is over
        elsewhere = asdict(LockHolder("elsewhere", 7, token="t"))
        s3.put("runs/cut-off/.lock", json.dumps(elsewhere).encode())
        time.sleep(2 * folder_lock.DEAD_SECONDS)
        assert not told
        s3.failures.clear()
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
    assert told[0].startswith(f"this process lost the lock of {store}, ")
    assert "; now it is held by process 7 on elsewhere" in told[0]


def test_whatever_goes_wrong_the_lock_is_refreshed_again(
    s3: ObjectStore, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, write, wrong = "s3://runs/odd", storage.write_bytes, [RuntimeError("can't start new thread"), KeyError("odd")]

    def odd(location: str, content: bytes) -> None:
        if wrong and threading.current_thread().name == "store-lock":
            raise wrong.pop()
        write(location, content)

    monkeypatch.setattr(storage, "write_bytes", odd)
    with store_lock.lock_store(store, tmp_path):
        deadline = time.monotonic() + 20
        while not beat_of(store) and time.monotonic() < deadline:
            time.sleep(0.05)
        wait_for_beats(store)
    assert not wrong and not told
    assert warnings(caplog) == [
        f"the lock file {store}/.lock could not be written ('odd'); the command continues, and tries again every 0.1 s"
    ]


def test_a_lock_counts_as_deleted_when_it_is_missed_twice(
    s3: ObjectStore, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read, misses = "s3://runs/deleted", storage.read_bytes, [0]

    def missing_once(location: str) -> bytes:
        if misses[0]:
            misses[0] -= 1
            raise FileNotFoundError(location)
        return read(location)

    with store_lock.lock_store(store, tmp_path):
        wait_for_beats(store)
        monkeypatch.setattr(storage, "read_bytes", missing_once)
        for _ in range(3):
            misses[0] = 1
            time.sleep(0.5)
        assert misses == [0] and not told
        wait_for_beats(store)
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            storage.delete(f"{store}/.lock")  # a heartbeat under way may write it again
            time.sleep(0.3)
    assert told == [f"this process lost the lock of {store}: it was deleted, or taken by a process that has ended"]


def test_nothing_is_copied_to_a_store_whose_lock_is_anothers(s3: ObjectStore, tmp_path: Path) -> None:
    """Nor by a worker of the process that had it; the next heartbeat, seconds later, ends the driver."""
    store = "s3://runs/pushed"
    (tmp_path / "metrics.jsonl").write_text("mine", encoding="utf-8")
    newest = checkpoint.save(state(steps=2), tmp_path)
    with store_lock.lock_store(store, tmp_path):
        run_store.push_files(tmp_path, store)
        assert storage.list_names(store) == [".lock", "metrics.jsonl"]
        token = store_lock.get_held_token(store)
        held_elsewhere(store, 0)
        (tmp_path / "metrics.jsonl").write_text("late", encoding="utf-8")
        with pytest.raises(RunFailed, match=r"now it is held by process 7 on elsewhere.*; nothing was copied there"):
            run_store.push_files(tmp_path, store)
        with pytest.raises(RunFailed, match="nothing was copied there"):
            run_store.push_checkpoint(newest, store)
    store_lock.adopt_lock(store, token)
    try:
        with pytest.raises(RunFailed, match="nothing was copied there"):
            run_store.push_files(tmp_path, store)
    finally:
        store_lock._held.clear()
    assert storage.list_names(store) == [".lock", "metrics.jsonl"]
    assert storage.read_bytes(f"{store}/metrics.jsonl") == b"mine"
