"""Labels that students reject who were trained without them: whole runs on generated videos, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import inspect, label, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.labeling.label_check import plan_label_check
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from tests.two_processes import without_ray

SHORT = ("train.steps=4", "train.warmup_steps=0", "method.supervised_steps=0")


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 16 labels, two of which were altered by an answer."""
    folder = tmp_path_factory.mktemp("labels")
    manifest = read_manifest(tiny / "manifest.parquet")
    labels = read_labels(tiny / "labels.parquet", manifest)
    lines = ["id,class"]
    for row in labels.rows[:2].tolist():
        other = (int(manifest.table["label"][row].as_py()) + 1) % 4
        lines.append(f"{manifest.table['id'][row].as_py()},{manifest.classes[other]}")
    (folder / "answers.csv").write_text("\n".join(lines) + "\n")
    words = ["--add", str(folder / "answers.csv"), "--from", str(tiny / "labels.parquet"), "--relabel"]
    assert label.main([str(tiny / "manifest.parquet"), *words, "--out", str(folder / "altered.parquet")]) == DONE
    words = [f"run.storage_path={folder}", f"data.labels={folder / 'altered.parquet'}", *SHORT]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    return folder / "tiny"


def test_rejected_labels_are_those_of_the_runs_without_them(
    trained: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_ray():
        assert run(inspect.main, ["labels", str(trained), "--folds", "2", "--concurrent", "1"]) == DONE
    said = capsys.readouterr().out
    manifest, folder = read_manifest(tiny / "manifest.parquet"), trained.parent / "tiny_label_check"
    given = read_labels(trained.parent / "altered.parquet", manifest).read_classes(manifest)
    rows = {name: row for row, name in enumerate(manifest.table["id"].to_pylist())}
    expected = {}
    seen: list[int] = []
    for number in range(2):
        subset = read_labels(folder / "labels" / f"fold-{number}.parquet", manifest)
        assert sorted([*subset.rows.tolist(), *subset.held_out.tolist()]) == sorted(given)
        for line in pq.read_table(folder / f"fold-{number}" / "predictions.parquet").to_pylist():
            row = rows[line["id"]]
            seen.append(row)
            assert line["label"] == given[row] and row not in subset.rows
            if all(np.argmax(line[student]) != given[row] for student in ("primary", "auxiliary")):
                expected[row] = min(max(line[name]) - line[name][given[row]] for name in ("primary", "auxiliary"))
    assert sorted(seen) == sorted(given)
    with (folder / "mistakes.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [rows[line["id"]] for line in listed] == sorted(expected, key=lambda row: (-expected[row], row))
    assert [line["class"] for line in listed] == [manifest.classes[given[rows[line["id"]]]] for line in listed]
    assert f"both students reject {len(expected)} of 16 labels" in said and "--relabel" in said
    page = (folder / "label.html").read_text(encoding="utf-8")
    assert page.count(", but both students say") + page.count(", but the students say") == len(expected) > 0
    before = (folder / "fold-0" / "metrics.jsonl").stat().st_mtime_ns
    assert run(inspect.main, ["labels", str(trained), "--folds", "2", "--concurrent", "1"]) == DONE
    assert (folder / "fold-0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert run(inspect.main, ["labels", str(trained), "--folds", "4", "--concurrent", "1"]) == USER_ERROR
    assert "is of other labels or folds" in capsys.readouterr().err


def test_groups_are_never_divided_and_every_class_spreads_over_the_folds(trained: Path, tiny: Path, tmp_path: Path) -> None:
    check = plan_label_check(trained, 4)
    known = check.labels.read_classes(check.manifest)
    assert sorted(np.concatenate(check.folds).tolist()) == check.labels.rows.tolist()
    assert [len(fold) for fold in check.folds] == [4, 4, 4, 4]
    assert all(len({known[row] for row in fold.tolist()}) >= 3 for fold in check.folds)  # as far as altered labels allow
    manifest = check.manifest
    names = [f"person {row % 3}" if split == "train" else None for row, split in enumerate(manifest.table["split"].to_pylist())]
    table = manifest.table.set_column(manifest.table.schema.get_field_index("group"), "group", pa.array(names, pa.string()))
    grouped = write_manifest(table, tmp_path / "manifest.parquet", manifest.classes, manifest.root, "groups")
    words = [
        f"run.storage_path={tmp_path}",
        f"data.manifest={grouped.path}",
        f"data.labels={tmp_path / 'labels.parquet'}",
        *SHORT,
    ]
    assert label.main([str(grouped.path), "--per-class", "4", "--out", str(tmp_path / "labels.parquet")]) == DONE
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    folds = plan_label_check(tmp_path / "tiny", 3).folds
    assert [len({names[row] for row in fold.tolist()}) for fold in folds] == [1, 1, 1]
    assert run(inspect.main, ["labels", str(tmp_path / "tiny"), "--folds", "4"]) == USER_ERROR


def test_what_cannot_be_checked_is_said(trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label.main([str(tiny / "manifest.parquet"), "--per-class", "1", "--out", str(tmp_path / "few.parquet")]) == DONE
    words = [f"run.storage_path={tmp_path}", f"data.labels={tmp_path / 'few.parquet'}", *SHORT]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    capsys.readouterr()
    assert run(inspect.main, ["labels", str(tmp_path / "tiny"), "--folds", "2"]) == USER_ERROR
    assert "4 classes have all their labels in one fold" in capsys.readouterr().err
    assert run(inspect.main, ["labels", str(trained), "--folds", "1"]) == USER_ERROR
    assert "--folds 1 must be at least 2" in capsys.readouterr().err
