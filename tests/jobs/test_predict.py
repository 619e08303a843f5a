"""A real run asked about real files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, predict, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.schema import read_manifest


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("predict")
    assert train.main(["--config", str(tiny / "tiny.yaml"), f"run.storage_path={storage}", "train.steps=2"]) == DONE
    return storage / "tiny"


def test_unlisted_files_get_the_scores_of_the_same_listed_ones(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies elsewhere, in another order, by the same protocol: the same bits as predictions.parquet."""
    manifest = read_manifest(tiny / "manifest.parquet")
    rows = manifest.usable_rows("test")[:3][::-1]
    files = [shutil.copy(manifest.locate(row), tmp_path / f"{place}.mp4") for place, row in enumerate(rows)]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "scores.parquet"
    words = [str(trained), str(files[0]), str(broken), *map(str, files[1:]), "--out", str(out), "--top", "1"]
    assert run(predict.main, words) == DONE
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == [str(files[0]), str(broken), str(files[1]), str(files[2])]
    assert "not predicted: " in printed[1]
    table = pq.read_table(out).to_pylist()
    assert [row["class"] is None for row in table] == [False, True, False, False] and table[1]["reason"]
    listed = {row["id"]: row for row in pq.read_table(trained / "predictions.parquet").to_pylist()}
    for row, mine in zip(rows, [table[0], *table[2:]], strict=True):
        theirs = listed[manifest.table["id"][int(row)].as_py()]
        for name in ("primary", "auxiliary", "mean"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)
        assert mine["class"] == manifest.classes[int(np.argmax(theirs["mean"]))]


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("few", [0, 256])
def test_scoring_actors_say_the_same_as_this_process(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    again = shutil.copytree(trained, tmp_path / "tiny")
    (again / "predictions.parquet").unlink()
    monkeypatch.setattr("pipeline.evaluation.predict.FEW_VIEWS", few)
    assert run(evaluate.main, [str(again), "scale.workers=2"]) == DONE
    theirs, mine = (pq.read_table(folder / "predictions.parquet") for folder in (trained, again))
    assert mine["id"] == theirs["id"] and mine.num_rows == 8
    for name in ("primary", "auxiliary", "mean"):
        np.testing.assert_allclose(np.stack(mine[name].to_numpy()), np.stack(theirs[name].to_numpy()), rtol=1e-4)


def test_what_cannot_be_predicted_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert run(predict.main, [str(trained), str(empty), str(tmp_path / "absent.mp4")]) == USER_ERROR
    said = capsys.readouterr().err
    assert "none of the 2 files can be used" in said and "empty.mp4: " in said and "absent.mp4: " in said
    assert run(predict.main, [str(trained), str(empty), str(empty)]) == USER_ERROR
    assert "named twice" in capsys.readouterr().err
    assert run(predict.main, [str(tmp_path), str(empty)]) == USER_ERROR
    assert run(predict.main, [str(trained), str(empty), "--out", str(tmp_path / "no" / "x.parquet")]) == USER_ERROR
    assert "there is no folder" in capsys.readouterr().err
