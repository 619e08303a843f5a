"""Runs whose folder lies on an S3 store: nothing local is needed to go on, and half-written is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs import train
from jobs.command import run
from pipeline.config import load_config
from pipeline.files import storage
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import read_metrics
from pipeline.training import loop
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import FILES
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import prepare_run
from tests.object_store import ObjectStore
from tests.training.checkpoints.test_checkpoint import state
from tests.training.test_loop import comparable, weights

HERE = "data.isolate_decoder=false"
"""No process that decodes is started anew for a test: where videos lie is not what changes here."""


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
    for name in FILES:  # a kill before the commit
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
    assert storage.list_remote_files("s3://runs/scratch") == ["scores/whole.parquet"]


@pytest.mark.timeout(240)
def test_a_run_goes_on_from_the_store_on_another_machine(
    s3: ObjectStore, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at step 7 of 12, its disk gone: the same bits as a run on a local disk that was not killed."""
    words = ["--config", str(tiny / "tiny.yaml"), HERE]
    assert run(train.main, [*words, f"run.storage_path={tmp_path}/local"]) == 0
    remote = ["run.storage_path=s3://runs/these", f"run.staging_path={tmp_path}/first"]
    prepared = prepare_run(load_config(tiny / "tiny.yaml", [HERE, *remote]))
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
    shutil.rmtree(tmp_path / "first")
    capsys.readouterr()
    remote[1] = f"run.staging_path={tmp_path}/second"
    assert run(train.main, [*words, *remote]) == 0
    assert "continuing at step 4 of 12, from checkpoint_000004" in capsys.readouterr().out
    folder = prepare_run(load_config(tiny / "tiny.yaml", [HERE, *remote])).run.folder
    assert comparable(folder) == comparable(tmp_path / "local" / "tiny")
    assert weights(folder / "checkpoint_000012") == weights(tmp_path / "local" / "tiny" / "checkpoint_000012")
    assert run_store.list_checkpoints("s3://runs/these/tiny") == ["checkpoint_000012", "checkpoint_000008"]
    names = storage.list_names("s3://runs/these/tiny")
    assert {"config.yaml", "facts.json", "metrics.jsonl", "predictions.parquet", "evaluation.json"} <= set(names)
    assert json.loads(storage.read_bytes("s3://runs/these/tiny/metrics.jsonl").splitlines()[-1]) == read_metrics(folder)[-1]
    # and a third machine only sees that it is done
    assert run(train.main, [*words, remote[0], f"run.staging_path={tmp_path}/third"]) == 0
    assert "is done: 12 steps are trained" in capsys.readouterr().out


@pytest.mark.timeout(240)
def test_a_store_that_stops_answering_for_long_ends_the_run_with_its_name(
    s3: ObjectStore, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "OUTAGE_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 0.5)
    words = ["--config", str(tiny / "tiny.yaml"), HERE, "run.storage_path=s3://runs/lost", f"run.staging_path={tmp_path}"]
    s3.failures["checkpoint_000004"] = 10_000
    assert run(train.main, words) == 1
    text = capsys.readouterr().err
    assert "failed: s3://runs/lost/tiny/checkpoint_000004 could not be written: the storage has not answered for 0 s: " in text
    assert f"tried {storage.ATTEMPTS} times" in text and "run the same command again" in text
    s3.failures["lost"] = 10_000
    assert run(train.main, words) == 2
    assert "error: run.storage_path=s3://runs/lost does not answer: " in capsys.readouterr().err


@pytest.mark.timeout(240)
def test_a_checkpoint_waits_for_a_store_that_stops_answering(
    s3: ObjectStore, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "OUTAGE_PAUSE_SECONDS", 0.1)
    words = ["--config", str(tiny / "tiny.yaml"), HERE, "run.storage_path=s3://runs/waits", f"run.staging_path={tmp_path}"]
    s3.failures["checkpoint_000004"] = 2 * storage.ATTEMPTS
    assert run(train.main, words) == 0
    assert s3.failures["checkpoint_000004"] == 0
    assert run_store.list_checkpoints("s3://runs/waits/tiny") == ["checkpoint_000012", "checkpoint_000008"]
