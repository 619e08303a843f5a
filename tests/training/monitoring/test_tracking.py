"""Trackers hold every step once, whatever restarts happen: files, a real MLflow server, W&B offline."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.command import run
from pipeline.config import load_config
from pipeline.run_folder.contents import read_metrics
from pipeline.training import loop
from pipeline.training.in_process import fit_in_process
from pipeline.training.monitoring.tracking import MetricSinks, TensorBoard, select_scalars
from pipeline.training.prepared_run import prepare_run

WANDB = importlib.util.find_spec("wandb") is not None


def command(tiny: Path, tmp_path: Path, *words: str) -> int:
    return run(train.main, ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *words])


def cut(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """A run that dies in its 8th step: metrics up to 6 are written, the checkpoint is of 4."""
    step, calls = loop.take_step, []

    def dying(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise InterruptedError
        return step(*arguments)

    prepared = prepare_run(load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", *words]))
    prepared.create_folder()
    monkeypatch.setattr(loop, "take_step", dying)
    with pytest.raises(InterruptedError):
        fit_in_process(prepared)
    monkeypatch.undo()


def tensorboard_steps(folder: Path, tag: str = "loss") -> list[int]:
    """Steps of a curve in all event files."""
    return [step for step, _ in _tensorboard(folder, tag)]


def tensorboard_values(folder: Path, tag: str) -> list[Any]:
    return [value for _, value in _tensorboard(folder, tag)]


def _tensorboard(folder: Path, tag: str) -> list[tuple[int, Any]]:
    """Read record by record with no code of ours."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, value) for value in event.summary.value if value.tag == tag]
            place += 12 + length + 4
    return found


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server over a SQLite database."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--workers", "1"], cwd=folder, stdout=log, stderr=log,
            start_new_session=True, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 90
            while not _answers(url):
                assert time.monotonic() < deadline and server.poll() is None, (folder / "log.txt").read_text()[-2000:]
                time.sleep(0.3)
            yield url
        finally:
            os.killpg(server.pid, 15)
            server.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def mlflow_history(url: str, run_id: str, metric: str) -> list[dict[str, Any]]:
    """A curve as the server tells it, with no code of ours and none of its client's."""
    with urllib.request.urlopen(f"{url}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={metric}") as answer:
        found: list[dict[str, Any]] = json.loads(answer.read()).get("metrics", [])
    return found


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")  # of the client
def test_a_killed_run_goes_on_with_the_same_curve(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_server: str
) -> None:
    words = [f"tracking.mlflow={mlflow_server}", "tracking.project=tests"]
    cut(tiny, tmp_path, monkeypatch, *words)
    known = json.loads((tmp_path / "tiny" / "tracking.json").read_text())["mlflow"]["id"]
    assert [point["step"] for point in mlflow_history(mlflow_server, known, "loss")] == [2, 4, 6]
    assert command(tiny, tmp_path, *words) == 0
    assert json.loads((tmp_path / "tiny" / "tracking.json").read_text())["mlflow"]["id"] == known

    lines = read_metrics(tmp_path / "tiny")
    points = mlflow_history(mlflow_server, known, "loss")
    assert [point["step"] for point in points] == [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [point["value"] for point in points] == pytest.approx([line["loss"] for line in lines])
    rates = mlflow_history(mlflow_server, known, "mask_rate/primary_to_auxiliary")
    assert [rate["value"] for rate in rates] == pytest.approx([line["mask_rate/primary_to_auxiliary"] for line in lines])
    assert tensorboard_steps(tmp_path / "tiny") == [2, 4, 6, 8, 10, 12]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_server_that_does_not_answer_is_one_message(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "tracking.mlflow=http://127.0.0.1:9") == 2
    assert "tracking.mlflow=http://127.0.0.1:9 does not answer as MLflow's server" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_an_outage_costs_a_warning_and_no_line(
    tmp_path: Path, mlflow_server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is made to fail as it does when the server is gone, and to work again."""
    from mlflow import MlflowClient

    config = load_config(None, [f"tracking.mlflow={mlflow_server}", "tracking.project=tests"])
    line = {"epoch": 0.1, "loss": 1.0, "seconds/data": 0.0, "seconds/step": 1.0, "clips_per_second": 1.0, "quarantined": 0,
            "eta_seconds": 1.0}  # fmt: skip
    send, failing = MlflowClient.log_batch, [True]

    def log_batch(self: Any, *arguments: Any, **words: Any) -> Any:
        if failing:
            raise ConnectionError("gone")
        return send(self, *arguments, **words)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with MetricSinks(config, tmp_path, 4) as outlets:
        outlets({"step": 1, **line})
        outlets({"step": 2, **line})
        outlets.trackers[1]._thread.submit(failing.clear).result()  # type: ignore[attr-defined]
        outlets({"step": 3, **line})
    assert capsys.readouterr().out.count("gone; lines are kept and sent later") == 1
    known = json.loads((tmp_path / "tracking.json").read_text())["mlflow"]["id"]
    assert [point["step"] for point in mlflow_history(mlflow_server, known, "loss")] == [1, 2, 3]


def test_what_is_not_installed_is_told_before_anything_starts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    assert command(tiny, tmp_path, "tracking.wandb=offline") == 2
    assert "pip install 'actnetformer[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "tiny").exists()


@pytest.mark.skipif(not WANDB, reason="wandb is not installed: pip install '.[wandb]'")
def test_offline_wandb_is_one_run_with_every_step_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(tiny, tmp_path, monkeypatch, "tracking.wandb=offline")
    assert command(tiny, tmp_path, "tracking.wandb=offline") == 0
    files = sorted((tmp_path / "tiny" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.parent.name.split("-")[-1] for file in files}) == 1
    assert [step for file in files for step in _wandb_steps(file)] == [2, 4, 6, 8, 10, 12]


def _wandb_steps(path: Path) -> list[int]:
    """Of LevelDB's log format: 7 bytes of header, then blocks of 32 KiB of (checksum 4, length 2, kind 1, part of a record)."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, steps = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block that has no place for another head
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts = (b"" if kind in (1, 2) else parts) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(parts)
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps


def test_tensorboard_is_written_anew_from_the_lines(tmp_path: Path) -> None:
    for _ in range(2):
        board = TensorBoard(tmp_path)
        for step in (1, 2):
            board.log({"step": step, "loss": 0.5, "confidence/a_to_b": [0.1, 0.9], "pseudo_label_accuracy/a_to_b": None})
        board.close()
    assert tensorboard_steps(tmp_path) == [1, 2]
    assert tensorboard_steps(tmp_path, "confidence/a_to_b") == [1, 2]
    (histogram, _) = tensorboard_values(tmp_path, "confidence/a_to_b")
    assert list(histogram.histo.bucket) == [0.1, 0.9] and list(histogram.histo.bucket_limit) == [0.5, 1.0]
    assert (histogram.histo.num, histogram.histo.sum) == (1.0, pytest.approx(0.1 * 0.25 + 0.9 * 0.75))
    assert select_scalars({"step": 1, "loss": 0.5, "kept_classes/a_to_b": [1.0], "signatures": []}) == {"loss": 0.5}
