"""Where nothing can be written, one sentence says so, and nothing is half written.

A limit of the size of files stands for a full disk.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs import evaluate, export, predict
from jobs.command import USER_ERROR, run
from tests.model_folders import video_of

CODE = """
import resource, sys
from jobs.command import run
from jobs.export import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
raise SystemExit(run(main, sys.argv[2:]))
"""
Fail = Callable[..., str]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs a command that can write no file of more than ``most`` bytes; returns what it says on standard error."""

    def fail(main: Callable[[Sequence[str] | None], int], most: int, *words: str) -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            code = run(main, words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = capsys.readouterr().err
        assert code == USER_ERROR and "Traceback" not in error, error
        return error

    return fail


@pytest.mark.parametrize("options", [(), ("--torch-export",)])
def test_an_export_leaves_nothing(fail: Fail, options: tuple[str, ...], trained: Path, exported: Path, tmp_path: Path) -> None:
    weights = (exported / "model.safetensors").stat().st_size
    error = fail(export.main, weights + 100 if options else weights - 1, str(trained), str(tmp_path / "out"), *options)
    assert error.endswith(f"error: {tmp_path / 'out'} cannot be written: File too large; choose another OUT\n")
    assert list(tmp_path.iterdir()) == []


def test_a_process_says_nothing_more_at_its_end(trained: Path, exported: Path, tmp_path: Path, repository: Path) -> None:
    most = (exported / "model.safetensors").stat().st_size - 1
    command = [sys.executable, "-c", CODE, str(most), str(trained), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100)
    assert done.returncode == USER_ERROR and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.endswith(f"error: {tmp_path / 'out'} cannot be written: File too large; choose another OUT\n")
    assert list(tmp_path.iterdir()) == []


def test_predictions_leave_nothing(fail: Fail, exported: Path, tiny: Path, tmp_path: Path) -> None:
    error = fail(predict.main, 1000, str(exported), video_of(tiny), "--out", str(tmp_path / "scores.csv"))
    assert error.endswith("error: a file cannot be written: File too large; make room, and run the same command again\n")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_leaves_nothing(fail: Fail, exported: Path, tiny: Path, tmp_path: Path) -> None:
    error = fail(evaluate.main, 1000, str(exported), "--manifest", str(tiny / "manifest.parquet"), "--out", str(tmp_path))
    assert "cannot be written: File too large; make room" in error.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_can_be_read_by_whoever_may_read_its_card(exported: Path) -> None:
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1


def test_no_folder_is_made_of_a_uri_nor_inside_of_a_run_nor_in_place_of_all_folders(
    trained: Path,
    exported: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([str(trained), "s3://bucket/model"], ["s3://bucket/run", "out"]):
        with pytest.raises(SystemExit, match=str(USER_ERROR)):
            run(export.main, words)
        assert "is a URI, and a folder of this machine is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=str(USER_ERROR)):
        run(evaluate.main, [str(exported), "--manifest", str(tiny / "manifest.parquet"), "--out", "s3://bucket/results"])
    assert "argument --out: s3://bucket/results is a URI" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    for inside in ("checkpoint_best", "checkpoint_000002/model"):  # training would delete them
        assert run(export.main, [str(trained), str(trained / inside)]) == USER_ERROR
        error = capsys.readouterr().err
        assert f"is inside of the run folder {trained}" in error and not (trained / inside).exists()
    assert run(export.main, [str(trained), "/"]) == USER_ERROR
    assert "error: / is the root of all folders: choose another OUT" in capsys.readouterr().err
