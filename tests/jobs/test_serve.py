"""The command: its mistakes, and a server that runs as a user starts it, from a model folder alone."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import export, predict, serve, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.schema import read_manifest
from pipeline.serving.web.access import TOKEN_VARIABLE


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a run that is gone."""
    storage = tmp_path_factory.mktemp("serve")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={storage}", "train.steps=2", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    assert run(export.main, [str(storage / "tiny"), str(storage / "drift")]) == DONE
    shutil.rmtree(storage / "tiny")
    return storage / "drift"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--host", "0.0.0.0"], TOKEN_VARIABLE),
        (["--token-file", "/no/such/file"], "--token-file /no/such/file cannot be read: No such file"),
        (["--allow-uri", "file:///etc/"], "--allow-uri file:///etc/"),
        (["--port", "70000"], "between 0 and 65535"),
        (["--replicas", "-1"], "--replicas -1 must be 0"),
        (["--max-megabytes", "0"], "--max-megabytes 0 must be a number above 0"),
        (["--max-megabytes", "nan"], "--max-megabytes"),
        (["--max-decoded-megabytes", "0"], "--max-decoded-megabytes 0 must be a number above 0"),
        (["--timeout", "soon"], "--timeout soon: write a time such as 2s"),
        (["--timeout", "0s"], "request_seconds must be a number above 0"),
        (["--scratch", "/no/such/folder"], "--scratch /no/such/folder: no folder for uploads"),
        (["train.steps=3"], "only evaluation.*"),
        (["evaluation.clips=0"], "evaluation.clips"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    model: Path, words: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(serve.main, [str(model), "--port", "0", *words]) == USER_ERROR
    assert shown in capsys.readouterr().err


def test_a_short_token_is_a_mistake(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    assert run(serve.main, [str(model), "--host", "0.0.0.0", "--port", "0"]) == USER_ERROR
    error = capsys.readouterr().err
    assert "at least 16 characters" in error and "secrets.token_urlsafe" in error


def test_a_port_in_use_is_a_mistake(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run(serve.main, [str(model), "--port", str(port)]) == USER_ERROR
    assert f"--port {port} cannot be used: another program listens there" in capsys.readouterr().err


def test_a_folder_that_is_no_whole_model_is_a_mistake(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(serve.main, [str(tmp_path / "none"), "--port", "0"]) == USER_ERROR
    assert "nor is it a model folder" in capsys.readouterr().err
    altered = Path(shutil.copytree(model, tmp_path / "altered"))
    (altered / "labels.json").write_text('["a", "b"]', encoding="utf-8")
    assert run(serve.main, [str(altered), "--port", "0"]) == USER_ERROR
    assert "labels.json was altered" in capsys.readouterr().err
    (altered / "model.safetensors").unlink()
    assert run(serve.main, [str(altered), "--port", "0"]) == USER_ERROR
    assert "model.safetensors is missing" in capsys.readouterr().err


def test_without_the_extra_the_remedy_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "PACKAGES", ("no_such_package", "json"))
    assert run(serve.main, [str(model)]) == USER_ERROR
    assert "needs no_such_package: pip install 'actnetformer[serve]'" in capsys.readouterr().err


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    status, content = response.status, response.read()
    connection.close()
    return status, content


def read_environments_below(pid: int) -> list[bytes]:
    """The environments of the processes that a process has started."""
    children = [one for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()]
    return [Path(f"/proc/{child}/environ").read_bytes() for child in children]


def test_sigterm_while_the_model_is_loaded_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "open_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert run(serve.main, [str(model), "--port", "0", "--scratch", str(tmp_path)]) == 128 + signal.SIGTERM
    assert "SIGTERM: stopped before the server was ready" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def test_a_server_answers_as_predict_does_and_stops_when_it_is_told_to(
    model: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On all addresses, with a token; SIGTERM is a normal end, after which nothing of it is left."""
    token, manifest = "a-token-of-this-test", read_manifest(tiny / "manifest.parquet")
    video = manifest.locate(int(manifest.find_usable_rows("test")[0]))
    command = [sys.executable, "-m", "jobs.serve", str(model), "--host", "0.0.0.0", "--port", "0", "--scratch", str(tmp_path)]
    with subprocess.Popen(
        command, env={**os.environ, TOKEN_VARIABLE: token}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"drift, 4 classes: http://127\.0\.0\.1:(\d+) \(interface: .*/docs\)\n", line)
            assert found, line
            port, bearer = int(found[1]), {"Authorization": f"Bearer {token}"}
            with open(video, "rb") as file:
                status, content = ask(port, "POST", "/predict?top=4&window=500ms", file.read(), **bearer)
            assert ask(port, "POST", "/predict", b"x")[0] == 401
            metrics = ask(port, "GET", "/metrics", **bearer)[1].decode()
            environments = read_environments_below(process.pid)
            process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert status == 200, content
    assert len(environments) >= 2 and not any(token.encode() in one for one in environments)  # inspect and decode
    assert process.returncode == DONE and "stopped; every request that had arrived was answered" in rest
    assert errors == ""
    assert re.search(r"^actnetformer_server_batch_videos_count [1-9]", metrics, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    answer = json.loads(content)
    capsys.readouterr()
    assert run(predict.main, [str(model), video, "--top", "4"]) == DONE
    printed = capsys.readouterr().out
    told = [(one["name"], round(100 * one["probability"])) for one in answer["classes"]]
    said = [(name, round(float(value))) for name, value in re.findall(r"(\w+) ([\d.]+)%", printed)]
    assert [name for name, _ in told] == [name for name, _ in said]
    assert max(abs(mine - theirs) for (_, mine), (_, theirs) in zip(told, said, strict=True)) <= 1  # another decoder
    assert len(answer["timeline"]) >= 1
