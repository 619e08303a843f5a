"""A finished run on a disk that is read-only, as published and archived ones are: it tells its results all the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import evaluate, train
from jobs.command import DONE, USER_ERROR, run

NOBODY = 65534


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """This process can read everything in the folder and write nothing; root, who may do all, is somebody else meanwhile."""
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def place() -> Iterator[Path]:
    """Outside of pytest's folders, which only their owner can enter."""
    folder = Path(tempfile.mkdtemp(prefix="read-only-"))
    yield folder
    shutil.rmtree(folder)


def test_a_finished_run_in_a_read_only_folder_tells_its_results(
    tiny: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny, place / "data", ignore=shutil.ignore_patterns("runs"))
    shutil.copy(tiny / "tiny.yaml", place)
    words = ["--config", str(place / "tiny.yaml"), f"run.storage_path={place}/runs"]
    words += [f"data.manifest={place}/data/manifest.parquet", f"data.root={place}/data/videos", "train.warmup_steps=0"]
    assert run(train.main, [*words, "train.steps=1"]) == DONE
    first = capsys.readouterr().out.splitlines()
    assert run(train.main, [*words, "train.steps=4", "run.name=part", "--max-steps", "2"]) == DONE
    capsys.readouterr()
    run_folder, out = place / "runs" / "tiny", Path(tempfile.mkdtemp(prefix="out-"))
    out.chmod(0o777)
    try:
        with read_only(place):
            assert run(train.main, [*words, "train.steps=1"]) == DONE
            again = capsys.readouterr().out.splitlines()
            assert again[-4:] == first[-4:] and "test top-1 after step 1 on 8 videos" in again[-4]
            assert run(train.main, [*words, "train.steps=4", "run.name=part"]) == USER_ERROR  # steps are left to train
            error = capsys.readouterr().err
            assert f"folder {place}/runs/part cannot be made or written into" in error and "another run.storage_path" in error
            assert run(evaluate.main, [str(run_folder)]) == USER_ERROR
            error = capsys.readouterr().err
            assert error == (
                f"error: folder {run_folder} cannot be made or written into: Permission denied; "
                "write the results elsewhere with --out FOLDER\n"
            )
            assert run(evaluate.main, [str(run_folder), "--out", str(out / "results")]) == DONE
            assert run(evaluate.main, [str(run_folder), "--out", str(place / "results")]) == USER_ERROR
            assert "write the results into another folder with --out FOLDER" in capsys.readouterr().err
        assert (out / "results" / "evaluation.json").is_file()
    finally:
        shutil.rmtree(out)
