"""What a file or folder is, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import info
from jobs.command import DONE, USER_ERROR, run
from pipeline.analysis.path_description import describe_path
from pipeline.errors import UserError
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from tests.study_folders import line, write_study


def test_a_manifest_and_its_labels(tiny: Path) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    found = describe_path(tiny / "manifest.parquet")
    assert (found["what"], found["videos"], found["fingerprint"]) == ("manifest", len(manifest.table), manifest.fingerprint)
    assert sum(found["splits"].values()) == found["videos"]
    labels = read_labels(tiny / "labels.parquet", manifest)
    found = describe_path(tiny / "labels.parquet")
    assert (found["what"], found["fingerprint"], found["of the manifest"]) == (
        "label subset", labels.fingerprint, manifest.fingerprint,
    )  # fmt: skip


def test_a_study_and_a_configuration(make_run: Any, tmp_path: Path, repository: Path) -> None:
    folder = make_run()
    study = write_study(folder.parent, [line(0, folder.name), line(1, "b", "waiting")], command="python -m jobs.ablate a")
    found = describe_path(study)
    assert found["trials"] == {"complete": 1, "waiting": 1} and found["continued by"] == "python -m jobs.ablate a"
    found = describe_path(repository / "jobs" / "configs" / "actions.yaml")
    assert found["training"] == "1,000 steps of 16 labeled + 32 unlabeled videos"


def test_what_is_nothing_of_this_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.yaml").write_text("train: {stps: 3}\n")
    in_folder = f"folder of data: name a file in it, for example python -m jobs.info {tmp_path / 'broken.parquet'}"
    for name, message in (
        ("absent", "does not exist"), ("empty", "nothing of this program"), (".", in_folder),
        ("other.parquet", "without this program's description"), ("broken.parquet", "not a readable Parquet file"),
        ("odd.yaml", "did you mean train.steps"),
    ):  # fmt: skip
        assert run(info.main, [str(tmp_path / name)]) == USER_ERROR
        assert message in capsys.readouterr().err


def test_it_is_printed_in_lines_and_as_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny / "manifest.parquet")
    assert run(info.main, [path]) == DONE
    assert capsys.readouterr().out.splitlines()[1].split() == ["what", "manifest"]
    assert run(info.main, [path, path, "--json"]) == DONE
    assert [one["what"] for one in json.loads(capsys.readouterr().out)] == ["manifest", "manifest"]


def test_a_table_of_this_program_that_is_none_of_these_is_not_taken_for_predictions(tmp_path: Path) -> None:
    table = pa.table({"x": [1]}).replace_schema_metadata({b"actnetformer": b'{"version": 2}'})
    pq.write_table(table, tmp_path / "odd.parquet")
    with pytest.raises(UserError, match="neither manifest, label subset nor predictions"):
        describe_path(tmp_path / "odd.parquet")
