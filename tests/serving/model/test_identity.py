"""A copy of the model is the model that the server was started with, or says that it is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.processes.isolation import ChildProcess, ProcessLimits
from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.model.served_model import ModelIdentity, identify_model
from pipeline.serving.on_ray.replicas import Replica
from pipeline.serving.web.access import TOKEN_VARIABLE, take_token
from tests.serving import misbehaving
from tests.serving.conftest import LIMITS
from tests.serving.web.test_access import TOKEN


@pytest.fixture
def copied(saved: SavedRun, tmp_path: Path) -> SavedRun:
    """The same model in a folder that a test may change."""
    folder = Path(shutil.copytree(saved.folder, tmp_path / "drift"))
    return replace(saved, folder=folder, weights=folder / saved.weights.name)


def start_replica(saved: SavedRun, identity: ModelIdentity, folder: Path) -> Replica:
    replica = Replica(saved, LIMITS, identity, folder)
    replica.model.stop()
    return replica


def test_a_replica_that_starts_again_has_the_weights_of_the_start(copied: SavedRun, tmp_path: Path) -> None:
    identity, content = identify_model(copied), copied.weights.read_bytes()
    assert start_replica(copied, identity, tmp_path).model.facts == identity.facts
    save_file({name: value + 1 for name, value in load_file(copied.weights).items()}, copied.weights)
    with pytest.raises(UserError, match=r"model\.safetensors was changed after the server was started: .*put the earlier"):
        start_replica(copied, identity, tmp_path)
    copied.weights.write_bytes(content)
    start_replica(copied, identity, tmp_path)
    copied.weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: No such file"):
        start_replica(copied, identity, tmp_path)


def test_a_replica_has_the_temperatures_of_the_start(copied: SavedRun, tmp_path: Path) -> None:
    """A run folder's file of temperatures may be written at any time."""
    identity = replace(identify_model(copied), temperatures={"mean": 2.0})
    (copied.folder / "calibration.json").write_text("damaged", encoding="utf-8")
    assert start_replica(copied, identity, tmp_path).model.temperatures == {"mean": 2.0}


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    process = ChildProcess(misbehaving.tell_environment, ProcessLimits(60.0))
    yield process
    process.stop()


def test_processes_that_decode_do_not_get_the_token(monkeypatch: pytest.MonkeyPatch, child: ChildProcess) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert take_token(None) == TOKEN and TOKEN_VARIABLE not in os.environ
    assert TOKEN not in str(child.call())


def test_the_token_of_a_file_is_used_and_that_of_the_environment_is_still_taken_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    (tmp_path / "token").write_text(f"{TOKEN}-2", encoding="utf-8")
    assert take_token(tmp_path / "token") == f"{TOKEN}-2" and TOKEN_VARIABLE not in os.environ


def test_processes_of_a_replica_do_not_get_the_token_of_their_machine(
    saved: SavedRun, monkeypatch: pytest.MonkeyPatch, child: ChildProcess, tmp_path: Path
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    start_replica(saved, identify_model(saved), tmp_path)
    assert TOKEN not in str(child.call())
