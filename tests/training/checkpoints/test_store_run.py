"""Runs whose folder lies on an S3 store: nothing local is needed to go on, and half-written is not there."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs import train
from jobs.command import run
from pipeline.config import load_config
from pipeline.errors import RunFailed
from pipeline.files import folder_lock, storage, store_lock
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import read_metrics
from pipeline.training import loop
from pipeline.training.checkpoints import checkpoint
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import prepare_run
from tests.files.test_storage import ENVIRONMENT
from tests.object_store import ObjectStore
from tests.training.checkpoints.test_checkpoint import state
from tests.training.test_loop import comparable, weights


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    store = ObjectStore()
    store.put("runs")
    yield store
    store.stop()


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(store_lock, "SETTLE_SECONDS", 0.1)
    storage._connect.cache_clear()
    yield server
    server.failures.clear()
    storage._connect.cache_clear()


def test_a_checkpoint_is_there_with_its_commit_and_not_before(s3: ObjectStore, tmp_path: Path) -> None:
    store = "s3://runs/commit"
    older, newer = (checkpoint.save(state(steps=steps), tmp_path / "here") for steps in (2, 4))
    run_store.push_checkpoint(older, store)
    requests = len(s3.requests)
    run_store.push_checkpoint(newer, store)
    # each file is announced, sent and completed
    puts = [path.split("?")[0].rpartition("/")[2] for method, path in s3.requests[requests:] if method in ("PUT", "POST")]
    assert puts[-3:] == ["state.json"] * 3 and "state.json" not in puts[:-3]
    assert run_store.list_checkpoints(store) == ["checkpoint_000004", "checkpoint_000002"]
    run_store.delete_checkpoint(store, "checkpoint_000004")
    for name in checkpoint.FILES:  # a kill before the commit
        storage.upload(newer / name, f"{store}/checkpoint_000004/{name}")
    assert checkpoint.find_newest(tmp_path / "there", store) == (tmp_path / "there" / "checkpoint_000002", [])


def test_a_damaged_one_on_the_store_is_named_and_skipped(s3: ObjectStore, tmp_path: Path) -> None:
    store = "s3://runs/damaged"
    for steps in (2, 4):
        run_store.push_checkpoint(checkpoint.save(state(steps=steps), tmp_path / "here"), store)
    storage.write_bytes(f"{store}/checkpoint_000004/model.safetensors", b"half")
    newest, problems = checkpoint.find_newest(tmp_path / "there", store)
    assert newest == tmp_path / "there" / "checkpoint_000002"
    assert len(problems) == 1 and "checkpoint_000004/model.safetensors" in problems[0]


def test_busy_stores_are_asked_again(s3: ObjectStore, tmp_path: Path) -> None:
    s3.failures["busy"] = 3
    run_store.push_checkpoint(checkpoint.save(state(steps=2), tmp_path / "here"), "s3://runs/busy")
    assert s3.failures["busy"] == 0
    assert checkpoint.find_newest(tmp_path / "there", "s3://runs/busy")[0] is not None


def test_files_are_the_stores(s3: ObjectStore, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "tensorboard").mkdir(parents=True)
    (one / "metrics.jsonl").write_text("new")
    (one / "tensorboard" / "events").write_bytes(b"e")
    (one / ".hidden").write_text("no")
    (other / "metrics.jsonl").write_text("old")
    (other / "left.txt").write_text("of another run")
    run_store.push_files(one, "s3://runs/files")
    run_store.pull_files("s3://runs/files", other)
    found = {path.relative_to(other).as_posix(): path.read_text() for path in other.rglob("*") if path.is_file()}
    assert found == {"metrics.jsonl": "new", "tensorboard/events": "e"}


def test_what_vanishes_while_files_are_copied_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training writes scores and trackers their files while a slow store takes the first ones."""
    scratch, gone, kept = (tmp_path / name for name in ("scores/.000001-000004.parquet.ab12", "wandb/log", "wandb/z"))
    for path in (scratch, gone, kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    (tmp_path / "metrics.jsonl").write_text("all")
    copied: list[str] = []

    def slow(path: Path, location: str) -> None:
        if path in (scratch, gone):  # between the listing and the upload
            path.unlink()
        path.read_bytes()
        copied.append(location)

    monkeypatch.setattr(storage, "upload", slow)
    run_store.push_files(tmp_path, "s3://runs/vanish")
    assert copied == ["s3://runs/vanish/metrics.jsonl", "s3://runs/vanish/wandb/z"]

    def away(path: Path, location: str) -> None:
        raise FileNotFoundError(location)  # the store's fault: the file is there

    monkeypatch.setattr(storage, "upload", away)
    with pytest.raises(FileNotFoundError):
        run_store.push_files(tmp_path, "s3://runs/vanish")


def test_scratch_files_of_folders_are_not_copied(s3: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / ".half.parquet").write_text("half")
    (tmp_path / "scores" / "whole.parquet").write_text("whole")
    run_store.push_files(tmp_path, "s3://runs/scratch")
    assert storage.list_files_below("s3://runs/scratch") == ["scores/whole.parquet"]


@pytest.mark.timeout(240)
def test_a_run_goes_on_from_the_store_on_another_machine(
    s3: ObjectStore, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at step 7 of 12, its disk gone: the same bits as a run on a local disk that was not killed."""
    words = ["--config", str(tiny / "tiny.yaml")]
    assert run(train.main, [*words, f"run.storage_path={tmp_path}/local"]) == 0
    remote = ["run.storage_path=s3://runs/these", f"run.staging_path={tmp_path}/first"]
    prepared = prepare_run(load_config(tiny / "tiny.yaml", remote))
    step, count = loop.take_step, []

    def killed(*arguments: object) -> object:
        count.append(0)
        if len(count) == 8:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "take_step", killed)
    prepared.create_folder()
    with pytest.raises(KeyboardInterrupt):
        fit_in_process(prepared)
    monkeypatch.undo()
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3.endpoint}.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(tmp_path / "first")
    capsys.readouterr()
    remote[1] = f"run.staging_path={tmp_path}/second"
    assert run(train.main, [*words, *remote]) == 0
    assert "continuing at step 4 of 12, from checkpoint_000004" in capsys.readouterr().out
    folder = prepare_run(load_config(tiny / "tiny.yaml", remote)).run.folder
    assert comparable(folder) == comparable(tmp_path / "local" / "tiny")
    assert weights(folder / "checkpoint_000012") == weights(tmp_path / "local" / "tiny" / "checkpoint_000012")
    assert run_store.list_checkpoints("s3://runs/these/tiny") == ["checkpoint_000012", "checkpoint_000008"]
    names = storage.list_names("s3://runs/these/tiny")
    assert {"config.yaml", "facts.json", "metrics.jsonl", "predictions.parquet", "evaluation.json"} <= set(names)
    assert json.loads(storage.read_bytes("s3://runs/these/tiny/metrics.jsonl").splitlines()[-1]) == read_metrics(folder)[-1]
    # and a third machine only sees that it is done
    assert run(train.main, [*words, remote[0], f"run.staging_path={tmp_path}/third"]) == 0
    assert "is done: 12 steps are trained" in capsys.readouterr().out


def held_elsewhere(store: str, beat: int) -> None:
    """The lock of a process on another machine."""
    since = "2026-11-28T08:00:00+00:00"
    holder = folder_lock.LockHolder("elsewhere", 7, "me", "python -m jobs.train", since, "t", "there", beat)
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
    assert told == [f"the lock of {store} is taken over by {who}: it was not refreshed for 0.5 s, or was deleted"]
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
        text = f"the lock {store}/.lock cannot be refreshed ({store}/.lock: tried {storage.ATTEMPTS} times: "
        assert [message[: len(text)] for message in warnings(caplog)] == [text]
    assert not told and ".lock" not in storage.list_names("s3://runs")


def test_who_was_taken_over_during_an_outage_ends_when_it_is_over(s3: ObjectStore, tmp_path: Path, told: list[str]) -> None:
    store = "s3://runs/cut-off"
    with store_lock.lock_store(store, tmp_path):
        wait_for_beats(store)
        s3.failures["cut-off/.lock"] = 10**6
        time.sleep(0.5)  # a heartbeat under way is over
        elsewhere = asdict(folder_lock.LockHolder("elsewhere", 7, token="t"))
        s3.put("runs/cut-off/.lock", json.dumps(elsewhere).encode())
        time.sleep(2 * folder_lock.DEAD_SECONDS)
        assert not told
        s3.failures.clear()
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
    assert told[0].startswith(f"the lock of {store} is taken over by process 7 on elsewhere")


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
        f"the lock {store}/.lock cannot be refreshed ('odd'): this is tried again every 0.1 s, and the command goes on"
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
    assert told == [f"the lock of {store} is gone: it was deleted, or taken over by a process that has ended"]


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
        with pytest.raises(RunFailed, match=r"is taken over by process 7 on elsewhere.*; nothing was copied there"):
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


@pytest.mark.timeout(240)
def test_a_store_that_stops_answering_ends_the_run_with_its_name(
    s3: ObjectStore, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), "run.storage_path=s3://runs/lost", f"run.staging_path={tmp_path}"]
    s3.failures["checkpoint_000004"] = 10_000
    assert run(train.main, words) == 1
    text = capsys.readouterr().err
    assert "failed: s3://runs/lost/tiny/checkpoint_000004 could not be written: s3://runs/lost" in text
    assert f"tried {storage.ATTEMPTS} times" in text
    s3.failures["lost"] = 10_000
    assert run(train.main, words) == 2
    assert "error: run.storage_path=s3://runs/lost does not answer: " in capsys.readouterr().err
