"""``jobs.train`` started twice under one name, and what else may not write beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import evaluate, report, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.files.folder_lock import LOCK, LockFile
from pipeline.run_folder.contents import read_metrics


def words(tiny: Path, folder: Path, *more: str) -> list[str]:
    return ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={folder}", "run.name=one", "train.log_every=1", *more]


@contextmanager
def another(path: Path) -> Iterator[None]:
    """Another process's lock, as this one sees it."""
    claim = LockFile(path / LOCK)
    assert claim.acquire()
    yield
    claim.release()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(LOCK)}


@pytest.mark.timeout(240)
def test_a_job_started_twice_trains_once(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A requeued job whose first copy is alive is refused; after its kill -9 the same command continues at once."""
    command = words(
        tiny, tmp_path, "train.steps=20", "train.checkpoint_every=5", "evaluation.clips=1", "data.isolate_decoder=false"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen([sys.executable, "-m", "jobs.train", *command], env=environment, stdout=log, stderr=log)
    folder = tmp_path / "one"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (folder / "checkpoint_000005").is_dir():
        assert first.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)
    before = contents(folder)
    assert run(train.main, command) == USER_ERROR
    error = capsys.readouterr().err
    assert f"error: {folder} is being written by another process: process {first.pid} on " in error
    assert "`python -m jobs.train --config" in error and "choose another run.name" in error
    assert run(evaluate.main, [str(folder)]) == USER_ERROR
    assert f"{folder} is being written by another process: process {first.pid} on " in capsys.readouterr().err
    assert contents(folder) == before
    first.kill()
    first.wait()
    begun = time.monotonic()
    assert run(train.main, command) == DONE
    assert "continuing at step" in capsys.readouterr().out
    assert time.monotonic() - begun < 40  # DEAD_SECONDS is 60
    assert [line["step"] for line in read_metrics(folder)] == list(range(1, 21))
    assert not list(folder.glob(f"{LOCK}*"))


def test_a_refused_command_makes_no_folder_and_says_no_step(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does one that was let in and found a mistake."""
    assert run(train.main, words(tiny, tmp_path / "runs", "train.keep_best=1")) == USER_ERROR
    assert not (tmp_path / "runs").exists()
    with another(tmp_path / "one"):
        assert run(train.main, words(tiny, tmp_path, "train.steps=1")) == USER_ERROR
        assert capsys.readouterr().out == ""
        assert run(train.main, words(tiny, tmp_path, "train.steps=1", "--dry-run")) == DONE  # which writes nothing
    assert list((tmp_path / "one").iterdir()) == []


def test_a_check_by_heart_has_one_writer_too(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with another(tmp_path / "one-overfit-2"):
        assert run(train.main, words(tiny, tmp_path, "--overfit", "2")) == USER_ERROR
    assert "one-overfit-2 is being written by another process" in capsys.readouterr().err


def test_a_loop_of_symbolic_links_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for main, words in (
        (train.main, [f"run.storage_path={loop}"]),
        (evaluate.main, [str(loop)]),
        (evaluate.main, [str(tmp_path), "--out", str(loop)]),
        (report.main, [str(loop)]),
    ):
        assert run(main, words) == USER_ERROR
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(tmp_path) in error and error.count("\n") == 1
