"""From a run with few labels to one with more: suggestions, answers, labels with their origin, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, export, label, predict, suggest, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.run_folder.contents import read_run


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps of one label a class that saved its scores at each."""
    storage = tmp_path_factory.mktemp("suggest")
    assert label.main([str(tiny / "manifest.parquet"), "--per-class", "1", "--out", str(storage / "few.parquet")]) == DONE
    words = [f"run.storage_path={storage}", f"data.labels={storage / 'few.parquet'}", "train.steps=24"]
    words += ["train.save_scores_every=1", "method.supervised_steps=0", "train.warmup_steps=0"]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    return storage / "tiny"


@pytest.fixture(scope="module")
def manifest(tiny: Path) -> Manifest:
    return read_manifest(tiny / "manifest.parquet")


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "suggest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def call(trained: Path, out: Path, *words: str) -> list[dict[str, str]]:
    assert run(suggest.main, [str(trained), "--out", str(out), *words]) == DONE
    return read_table(out)


def test_answers_to_suggestions_become_labels_of_a_second_run(
    trained: Path, manifest: Manifest, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = call(trained, tmp_path, "--count", "4", "--balanced")
    few = read_labels(trained.parent / "few.parquet", manifest)
    ids = manifest.table["id"].to_pylist()
    places = [ids.index(row["id"]) for row in rows]
    assert len(set(places)) == 4 and not set(places) & {*few.rows, *manifest.find_usable_rows("test")}
    assert all(row["primary"] in manifest.classes and 0 <= float(row["primary_probability"]) <= 1 for row in rows)
    page = (tmp_path / "label.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == 4
    said = capsys.readouterr().out
    assert f"python -m jobs.label {manifest.path} --add answers.csv --from {trained.parent / 'few.parquet'}" in said

    true = [manifest.table["class"][place].as_py() for place in places]
    answers = tmp_path / "answers.csv"
    lines = [f"{row['id']},class,{name}" for row, name in zip(rows[:3], true, strict=False)] + [f"{rows[3]['id']},bad_video,"]
    answers.write_text("\n".join(["id,status,class", *lines]) + "\n", encoding="utf-8")
    more = tmp_path / "more.parquet"
    words = [manifest.path, "--add", str(answers), "--from", str(trained.parent / "few.parquet"), "--out", str(more)]
    assert run(label.main, words) == DONE
    said = capsys.readouterr().out
    assert "3 videos have a label now that had none" in said and f"not trained on anymore: {rows[3]['id']} (bad video)" in said

    words = [f"run.storage_path={tmp_path}", "run.name=second", f"data.labels={more}", "train.steps=2"]
    assert run(export.main, [str(trained), str(tmp_path / "first")]) == DONE
    words += [f"{student}.network.weights={tmp_path / 'first'}" for student in ("primary", "auxiliary")]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    config, facts = read_run(tmp_path / "second")
    source, labels = open_source(config)
    assert set(labels.rows) == {*few.rows, *places[:3]} and places[3] not in {*source.plan.labeled, *source.plan.unlabeled}
    assert facts["fingerprints"]["labels"] == labels.fingerprint != few.fingerprint


def test_labels_that_contradict_the_manifest_are_what_is_trained_on(
    trained: Path, manifest: Manifest, tiny: Path, tmp_path: Path
) -> None:
    (first, *_) = call(trained, tmp_path, "--count", "1", "--strategy", "random")
    row = manifest.table["id"].to_pylist().index(first["id"])
    wrong = next(name for name in manifest.classes if name != manifest.table["class"][row].as_py())
    (tmp_path / "answers.csv").write_text(f"id,class\n{first['id']},{wrong}\n", encoding="utf-8")
    words = [manifest.path, "--add", str(tmp_path / "answers.csv"), "--from", str(trained.parent / "few.parquet")]
    assert run(label.main, [*words, "--out", str(tmp_path / "more.parquet")]) == USER_ERROR
    assert not (tmp_path / "more.parquet").exists()
    assert run(label.main, [*words, "--out", str(tmp_path / "more.parquet"), "--relabel"]) == DONE
    source, _ = open_source(load_config([tiny / "tiny.yaml"], [f"data.labels={tmp_path / 'more.parquet'}"]))
    columns = source.decode_rows(np.arange(40))
    found = dict(zip(columns["video"][:, 0].tolist(), columns["label"][:, 0].tolist(), strict=True))
    assert manifest.classes[found[row]] == wrong
    others = {video: manifest.table["label"][video].as_py() for video in found if video != row}
    assert {video: found[video] for video in others} == others and len(others) == 4


def test_held_out_videos_are_evaluated_by_the_labels_that_people_gave(
    trained: Path, manifest: Manifest, tiny: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held.parquet"
    assert label.main([manifest.path, "--per-class", "2", "--hold-out", "50%", "--out", str(held)]) == DONE
    row = int(read_labels(held, manifest).held_out[0])
    name, true = (manifest.table[column][row].as_py() for column in ("id", "class"))
    wrong = next(other for other in manifest.classes if other != true)
    (tmp_path / "answers.csv").write_text(f"id,class\n{name},{wrong}\n", encoding="utf-8")
    words = [manifest.path, "--add", str(tmp_path / "answers.csv"), "--from", str(held), "--relabel"]
    assert run(label.main, [*words, "--out", str(tmp_path / "more.parquet")]) == DONE
    words = [f"run.storage_path={tmp_path}", f"data.labels={tmp_path / 'more.parquet'}", "train.steps=2"]
    words += ["evaluation.split=validation"]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    assert run(evaluate.main, [str(tmp_path / "tiny")]) == DONE
    rows = pq.read_table(tmp_path / "tiny" / "predictions.parquet").to_pylist()
    assert {one["id"]: one["class"] for one in rows}[name] == wrong and len(rows) == 4
    assert all(manifest.classes[one["label"]] == one["class"] for one in rows)


def test_strategies_differ_and_the_same_command_suggests_the_same(trained: Path, tmp_path: Path) -> None:
    chosen = {
        name: [row["id"] for row in call(trained, tmp_path / name, "--count", "6", "--strategy", name)]
        for name in ("mixed", "disagreement", "entropy", "margin", "unfamiliar", "unstable", "diverse", "random")
    }
    again = [row["id"] for row in call(trained, tmp_path / "again", "--count", "6", "--strategy", "mixed")]
    assert again == chosen["mixed"] and all(len(set(ids)) == len(ids) for ids in chosen.values())
    assert len({tuple(ids) for ids in chosen.values()}) > 4
    scores = [float(row["score"]) for row in read_table(tmp_path / "entropy")]
    assert scores == sorted(scores, reverse=True)


def test_groups_that_no_video_has_are_said_to_leave_out_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(trained, tmp_path, "--count", "1", "--skip-groups")
    assert "note: the manifest has no groups (recordings or persons), so --skip-groups" in capsys.readouterr().out


def test_a_table_of_predictions_serves_where_training_saved_nothing(
    trained: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.parquet"
    assert run(predict.main, [str(trained), manifest.path, "--out", str(table)]) == DONE
    assert json.loads(pq.read_schema(table).metadata[b"actnetformer"])["manifest"] == manifest.fingerprint
    rows = call(trained, tmp_path / "out", "--count", "40", "--predictions", str(table), "--strategy", "entropy")
    few = read_labels(trained.parent / "few.parquet", manifest)
    assert len(rows) == len(manifest.find_training_rows()) - len(few.rows)
    assert f"only {len(rows)} of the 40 videos asked for can be suggested" in capsys.readouterr().out
    assert run(suggest.main, [str(trained), "--predictions", str(table), "--strategy", "unstable"]) == USER_ERROR
    assert run(suggest.main, [str(trained), "--predictions", str(trained / "predictions.parquet")]) == USER_ERROR
    said = capsys.readouterr().err
    assert "needs the scores that training saved" in said and "lacks the columns" in said


def test_served_answers_are_saved(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.suggest", str(trained), "--count", "2", "--serve", "0", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    try:
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        page = urllib.request.urlopen(address, timeout=20).read().decode()
        token = re.search(r'"token": "([\w-]+)"', page)
        assert token is not None
        video = read_table(tmp_path)[0]["id"]
        body = f'{{"id": "{video}", "status": "no_action", "answer": "", "by": "", "at": ""}}'.encode()
        request = urllib.request.Request(f"{address}answers", body, {"X-Token": token[1], "Content-Type": "application/json"})
        assert urllib.request.urlopen(request, timeout=20).read() == b"saved"
        assert f"{video},no_action," in (tmp_path / "answers.csv").read_text(encoding="utf-8")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == DONE and "1 answers in" in process.stdout.read()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_mistakes_are_told_before_anything_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, problem in (
        ([str(tmp_path)], "is not a run folder"),
        ([str(trained), "--count", "0"], "--count 0: write 1 to 1000"),
        ([str(trained), "--answers", "a.csv"], "--answers is for --serve"),
        ([str(trained), "data.manifest=nowhere.parquet"], "nowhere.parquet"),
    ):
        assert run(suggest.main, [*words, "--out", str(tmp_path / "out")]) == USER_ERROR
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
