"""A small copy of runs makes the same page again, and names nothing of the machine that they ran on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import report as command
from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.report.report import write_report
from pipeline.report.small_copy import copy_runs
from tests.study_folders import SaveRun, write_weights


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, write_run: SaveRun) -> Path:
    folder = write_weights(tmp_path_factory.mktemp("studies"), manifest, write_run)
    run = next(path for path in sorted(folder.iterdir()) if (path / "facts.json").is_file())
    facts = json.loads((run / "facts.json").read_text())
    facts["manifest"] = {**facts.get("manifest", {}), "path": "/disk/somebody/data/actions/manifest.parquet"}
    (run / "facts.json").write_text(json.dumps({**facts, "host": "a-machine", "command": "python -m jobs.train"}))
    (run / "checkpoint_000100").mkdir()
    (run / "checkpoint_000100" / "model.safetensors").write_bytes(b"0" * 100_000)
    return folder


def test_the_copy_has_the_same_tables(study: Path, tmp_path: Path) -> None:
    (copy,) = copy_runs([study], tmp_path / "kept")
    pages = (("a", study), ("b", copy))
    tables = [write_report([folder], tmp_path / f"{name}.html", wanted=("md",)).table for name, folder in pages]
    assert tables[0] == tables[1]
    assert "contrast.weight=1 by +89.6 points" in tables[0]


def test_the_copy_has_no_weights_and_is_of_no_machine(study: Path, tmp_path: Path) -> None:
    (copy,) = copy_runs([study], tmp_path / "kept")
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert not list(copy.rglob("checkpoint_*"))
    for path in files:
        text = path.read_bytes()
        assert b"/disk/somebody" not in text and b"a-machine" not in text
    run = next(path.parent for path in sorted(copy.rglob("facts.json")))
    assert json.loads((run / "facts.json").read_text())["manifest"]["path"] == "actions/manifest.parquet"


def test_scores_keep_the_first_class_of_every_video(study: Path, tmp_path: Path) -> None:
    (copy,) = copy_runs([study], tmp_path / "kept")
    for path in copy.rglob("predictions.parquet"):
        kept, whole = (np.array(pq.read_table(one)["mean"].to_pylist()) for one in (path, study / path.relative_to(copy)))
        np.testing.assert_array_equal(kept.argmax(axis=1), whole.argmax(axis=1))
        np.testing.assert_allclose(kept, whole, atol=1e-3)


def test_a_second_copy_replaces_the_first(study: Path, tmp_path: Path) -> None:
    (copy,) = copy_runs([study], tmp_path / "kept")
    gone = next(path for path in sorted(copy.iterdir()) if path.is_dir())
    (gone / "metrics.jsonl").unlink(missing_ok=True)
    (copy / "left over").mkdir()
    copy_runs([study], tmp_path / "kept")
    assert (gone / "metrics.jsonl").is_file() and not (copy / "left over").exists()


def test_two_of_one_name_and_the_runs_own_place_are_refused(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "other" / study.name)
    with pytest.raises(UserError, match=f"several are called {study.name}"):
        copy_runs([study, tmp_path / "other" / study.name], tmp_path / "kept")
    with pytest.raises(UserError, match="is not an earlier copy without weights: give another folder"):
        copy_runs([study], study.parent)
    assert list(study.rglob("model.safetensors"))


def test_a_folder_that_is_no_copy_is_not_replaced(study: Path, tmp_path: Path) -> None:
    notes = tmp_path / "kept" / study.name / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(UserError, match="is not an earlier copy"):
        copy_runs([study], tmp_path / "kept")
    assert notes.read_text() == "mine"


def test_paths_of_failed_videos_and_of_trials_are_shortened(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "study" / next(path for path in sorted(study.iterdir()) if path.is_dir()).name
    shutil.copytree(study / run.name, run)
    failed = pq.read_table(run / "quarantine.parquet").to_pylist()[0] | {"uri": "/disk/somebody/videos/a.mp4"}
    pq.write_table(pa.Table.from_pylist([failed]), run / "quarantine.parquet")
    line = {"number": 0, "state": "complete", "params": {"data.manifest": "/disk/somebody/m.parquet"}, "run_folder": run.name}
    (run.parent / "trials.jsonl").write_text(json.dumps(line) + '\n{"number": 1, "sta')
    (copy,) = copy_runs([run.parent], tmp_path / "kept")
    assert pq.read_table(copy / run.name / "quarantine.parquet")["uri"].to_pylist() == ["videos/a.mp4"]
    assert json.loads((copy / "trials.jsonl").read_text())["params"] == {"data.manifest": "somebody/m.parquet"}


def test_the_command_says_where_the_copies_are(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(study), "--copy", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "kept" / study.name)]
