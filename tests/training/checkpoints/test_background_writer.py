"""Checkpoints written beside the training: no waiting, one at a time, no error lost."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch

from pipeline.config import TrainSection
from pipeline.errors import RunFailed
from pipeline.training.checkpoints import background_writer, checkpoint
from pipeline.training.checkpoints.background_writer import CheckpointWriter, NotSaved
from pipeline.training.checkpoints.checkpoint import Snapshot
from tests.training.checkpoints.test_checkpoint import state, tensors

TRAIN = TrainSection(keep_checkpoints=2)


class SlowDisk:
    """Stands before ``checkpoint.write`` and waits until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_write, self.writing = threading.Event(), threading.Event()
        self.write = checkpoint.write
        monkeypatch.setattr(background_writer, "write", self)

    def __call__(self, shot: Snapshot, folder: Path) -> Path:
        self.writing.set()
        assert self.may_write.wait(30)
        return self.write(shot, folder)


def test_saving_does_not_wait_and_what_changes_later_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, one = SlowDisk(monkeypatch), state(steps=3)
    before = [value.clone() for value in tensors(one)]
    with CheckpointWriter(tmp_path, None, TRAIN) as saver:
        saver.save(one)
        assert disk.writing.wait(30)
        assert checkpoint.find_newest(tmp_path) == (None, [])
        with torch.no_grad():  # the next step
            for parameter in one.method.parameters():
                parameter.add_(1)
        for optimizer in one.optimizers.values():
            optimizer.step()
        saver.check()
        disk.may_write.set()
        saver.wait()
        loaded = state(seed=1, steps=0)
        checkpoint.load(loaded, tmp_path / "checkpoint_000003")
        assert all(torch.equal(a, b) for a, b in zip(before, tensors(loaded), strict=True))


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    with CheckpointWriter(tmp_path, None, TRAIN) as saver:
        saver.save(state(steps=2))
        threading.Timer(0.5, disk.may_write.set).start()
        start = time.monotonic()
        saver.save(state(steps=4))
        assert time.monotonic() - start >= 0.4
        assert (tmp_path / "checkpoint_000002").is_dir()


def test_a_failed_write_is_raised_by_the_next_call_and_names_the_place(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.write_text("no folder")
    with CheckpointWriter(folder, None, TRAIN) as saver:
        saver.save(state(steps=2))
        assert saver._pending is not None
        wait([saver._pending])
        with pytest.raises(NotSaved, match=r"run/checkpoint_000002 could not be written: .*Not a directory"):
            saver.check()


def test_a_failed_last_write_is_raised_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    saver = CheckpointWriter(tmp_path / "run", None, TRAIN)
    saver.save(state(steps=2))
    with pytest.raises(NotSaved):
        saver.__exit__(None, None, None)


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_writer(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    saver = CheckpointWriter(tmp_path / "run", None, TRAIN)
    saver.save(state(steps=2))
    saver.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    """As an optimizer's step makes them from finite gradients, when the rate is high enough."""
    one = state(steps=2)
    with torch.no_grad():
        next(one.method.parameters())[0] = float("inf")
    saver = CheckpointWriter(tmp_path, None, TRAIN)
    saver.save(one)
    with pytest.raises(RunFailed, match=r"0\.weight is no longer finite at step 2; .* clip_gradient_norm"):
        saver.wait()
    assert list(tmp_path.iterdir()) == []


def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power that goes in between must not leave a checkpoint whose lines of metrics are lost."""
    (tmp_path / "scores").mkdir()
    written = ["metrics.jsonl", "quarantine.parquet", "scores/000001-000002.parquet"]
    for name in written:
        (tmp_path / name).write_text("x")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    with CheckpointWriter(tmp_path, None, TRAIN) as saver:
        saver.save(state(steps=2))
    places = [synced.index(str(tmp_path / name)) for name in written]
    assert max(places) < min(number for number, path in enumerate(synced) if ".checkpoint_000002" in path)


def test_the_last_checkpoint_is_there_when_the_writer_ends(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, None, TRAIN) as saver:
        for steps in (1, 2, 3, 4):
            saver.save(state(steps=steps))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000003", "checkpoint_000004"]


def test_only_the_first_worker_writes(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, None, TRAIN, active=False) as saver:
        saver.save(state())
    assert list(tmp_path.iterdir()) == []


def test_the_best_stay_beside_the_newest(tmp_path: Path) -> None:
    scores: dict[int, float] = {}
    with CheckpointWriter(tmp_path, None, TrainSection(keep_checkpoints=1, keep_best=2)) as saver:
        for steps, score in enumerate([0.5, 0.9, 0.2, 0.9, 0.6], start=1):
            one = state(steps=steps)
            scores[steps] = score
            one.scores = dict(scores)
            saver.save(one)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "4", "5"]
    loaded = state(steps=0)
    checkpoint.load(loaded, tmp_path / "checkpoint_000005")
    assert loaded.scores == scores


@pytest.mark.parametrize(
    ("step", "keep", "best", "stay"),
    [
        (40, 1, 0, {40}),
        (40, 2, 0, {30, 40}),
        (40, 1, 1, {20, 40}),
        (40, 1, 3, {10, 20, 30, 40}),
        (30, 1, 0, {30}),  # 40 was found damaged
    ],
)
def test_which_stay(step: int, keep: int, best: int, stay: set[int]) -> None:
    assert checkpoint.choose_kept_steps([10, 20, 30, 40], step, keep, {10: 0.5, 20: 0.9, 30: 0.2}, best) == stay


class Scaler:
    """As torch.amp.GradScaler, in what a checkpoint needs of it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


def test_scaler_and_unwritten_metrics_are_part_of_the_state(tmp_path: Path) -> None:
    one, other = state(), state(steps=0)
    one.scaler, other.scaler = Scaler(512.0), Scaler(1.0)
    one.unwritten = {"steps": 3, "sums": {"loss": 1.25}, "counts": {"loss": 3}}
    checkpoint.load(other, checkpoint.save(one, tmp_path))
    assert (other.scaler.scale, other.unwritten) == (512.0, one.unwritten)
