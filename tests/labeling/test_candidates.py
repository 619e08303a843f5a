"""What a real run suggests: nothing of held-out groups, and what the user leaves out."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, label, predict, suggest, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.clips.decode import Video
from pipeline.labeling.small_clips import SmallClip
from pipeline.manifest.label_subset import LabelSubset, read_labels
from pipeline.manifest.labeling_answers import add_answers
from pipeline.manifest.schema import SCHEMA, Manifest, read_manifest, write_manifest


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of grouped videos, of which some groups are held out; four unlabeled videos have a copy of another id."""
    path = tmp_path_factory.mktemp("grouped")
    plain = read_manifest(tiny / "manifest.parquet")
    columns = plain.table.to_pylist()
    train_rows = plain.find_usable_rows("train").tolist()
    for place, row in enumerate(train_rows):
        columns[row]["group"] = f"person {place // 3}"
    table = pa.Table.from_pylist(columns, schema=SCHEMA)
    manifest = write_manifest(table, path / "manifest.parquet", plain.classes, plain.root, "list")
    words = [manifest.path, "--per-class", "4", "--hold-out", "50%", "--out", str(path / "labels.parquet")]
    assert run(label.main, words) == DONE
    used = read_labels(path / "labels.parquet", manifest)
    ids = plain.table["id"].to_pylist()
    free = [row for row in train_rows if row not in {*used.rows, *used.held_out}]
    copies = []
    for row in free[:4]:
        uri = shutil.copy(plain.locate(row), path / f"{row}.mp4")
        copies.append({**columns[row], "id": f"copy of {ids[row]}", "uri": str(uri), "group": None, "split": "unlabeled"})
    table = pa.Table.from_pylist([*columns, *copies], schema=SCHEMA)
    manifest = write_manifest(table, path / "manifest.parquet", plain.classes, plain.root, "list")
    assert run(label.main, words) == DONE
    words = [f"data.manifest={manifest.path}", f"data.labels={path / 'labels.parquet'}", f"run.storage_path={path}"]
    words += ["train.steps=4", "train.save_scores_every=1", "method.supervised_steps=0", "train.warmup_steps=0"]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *words]) == DONE
    assert run(predict.main, [str(path / "tiny"), manifest.path, "--out", str(path / "scores.parquet")]) == DONE
    return path


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder / "manifest.parquet")


@pytest.fixture(scope="module")
def labels(folder: Path, manifest: Manifest) -> LabelSubset:
    return read_labels(folder / "labels.parquet", manifest)


def call(folder: Path, out: Path, *words: str) -> list[str]:
    """Returns the ids of all videos that are suggested."""
    command = [str(folder / "tiny"), "--predictions", str(folder / "scores.parquet"), "--count", "100", "--out", str(out)]
    assert run(suggest.main, [*command, *words]) == DONE
    with (out / "suggest.csv").open(newline="", encoding="utf-8") as file:
        return [row["id"] for row in csv.DictReader(file)]


def list_groups(manifest: Manifest, rows: np.ndarray) -> set[str]:
    return set(manifest.table["group"].take(pa.array(rows)).to_pylist()) - {None}


def test_answers_to_whatever_is_suggested_can_be_added(
    folder: Path, manifest: Manifest, labels: LabelSubset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = manifest.table["id"].to_pylist()
    groups = dict(zip(ids, manifest.table["group"].to_pylist(), strict=True))
    held = list_groups(manifest, labels.held_out)
    used = {*labels.rows, *labels.held_out}
    unlabeled = [ids[row] for row in manifest.find_training_rows() if row not in used]
    beside = [name for name in unlabeled if groups[name] in held]
    found = call(folder, tmp_path)
    assert beside and sorted(found) == sorted(set(unlabeled) - set(beside))
    assert f"{len(beside)} videos are of a group of which videos are held out for validation" in capsys.readouterr().out
    truth = dict(zip(ids, manifest.table["class"].to_pylist(), strict=True))
    (tmp_path / "answers.csv").write_text("id,class\n" + "".join(f"{name},{truth[name]}\n" for name in found))
    assert add_answers(manifest, labels, tmp_path / "answers.csv").added == len(found)


def test_groups_with_a_label_are_left_out_on_request(
    folder: Path, manifest: Manifest, labels: LabelSubset, tmp_path: Path
) -> None:
    groups = dict(zip(manifest.table["id"].to_pylist(), manifest.table["group"].to_pylist(), strict=True))
    known = list_groups(manifest, np.concatenate([labels.rows, labels.held_out]))
    every, left = call(folder, tmp_path), call(folder, tmp_path, "--skip-groups")
    assert set(left) == {name for name in every if groups[name] not in known} and 0 < len(left) < len(every)


def test_videos_that_were_answered_are_left_out_on_request(
    folder: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = call(folder, tmp_path)
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text(f"id,status,class\n{every[0]},class,{manifest.classes[0]}\n{every[1]},skipped,\n")
    second.write_text(f"id,status,class\n{every[2]},bad_video,\n")
    left = call(folder, tmp_path, "--without", str(first), "--without", str(second))
    assert sorted(left) == sorted(set(every) - {every[0], every[2]})  # a skipped one comes again
    assert "2 videos are answered by the files of --without" in capsys.readouterr().out
    second.write_text("id,class\nx/nowhere,a\n")
    assert run(suggest.main, [str(folder / "tiny"), "--without", str(second)]) == USER_ERROR
    assert "second.csv has answers of another manifest" in capsys.readouterr().err


def test_near_duplicates_are_replaced_by_videos_further_down(
    folder: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rendered videos look much the same, so their hashes are given: the five that come first are copies."""
    every = call(folder, tmp_path, "--strategy", "random")
    places = dict(zip(map(manifest.locate, range(manifest.table.num_rows)), manifest.table["id"].to_pylist(), strict=True))
    alike = np.random.default_rng(0).random(192) < 0.5

    def decode(videos: list[Video]) -> Iterator[tuple[int, SmallClip]]:
        for index, video in enumerate(videos):
            name = places[video.location]
            number = every.index(name) if name in every else -1
            own = np.random.default_rng(2 + number).random(192) < 0.5
            yield index, SmallClip("an image", alike if 0 <= number < 5 else own)

    monkeypatch.setattr("pipeline.labeling.suggest.decode_small_clips", decode)
    monkeypatch.setattr("pipeline.labeling.suggest.SPARE", 1)
    left = call(folder, tmp_path, "--strategy", "random", "--skip-duplicates", "--count", "2")
    assert left == [every[0], every[5]]
    assert "4 near-duplicates of labeled or chosen videos are left out" in capsys.readouterr().out
    left = call(folder, tmp_path, "--strategy", "random", "--skip-duplicates")
    assert left == [every[0], *every[5:]] and len(every) > 6
    assert f"only {len(left)} of the 100 videos asked for can be suggested" in capsys.readouterr().out


def test_videos_that_the_prediction_rejected_are_marked_and_the_least_familiar_come_first(
    folder: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again, table = tmp_path / "tiny", tmp_path / "scores.parquet"
    shutil.copytree(folder / "tiny", again)
    assert run(evaluate.main, [str(again), "--calibrate"]) == DONE
    calibration = json.loads((again / "calibration.json").read_text(encoding="utf-8"))
    for name, temperature in (("primary", 0.2), ("auxiliary", 5.0)):  # so that their mean is not the calibrated mean
        calibration[name]["temperature"] = temperature
    (again / "calibration.json").write_text(json.dumps(calibration), encoding="utf-8")
    assert run(predict.main, [str(again), manifest.path, "--reject-unknown", "45%", "--out", str(table)]) == DONE
    predicted = {row["file"]: row for row in pq.read_table(table).to_pylist()}
    words = ["--strategy", "unfamiliar", "--count", "1000"]
    capsys.readouterr()
    assert run(suggest.main, [str(again), *words, "--predictions", str(table)]) == DONE
    with (again / "suggest" / "suggest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    marked = [row["id"] for row in rows if row["reason"].startswith("new class? like none of the classes: the most ")]
    assert marked == [row["id"] for row in rows if predicted[row["id"]]["rejected"]] and 0 < len(marked) < len(rows)
    best = [predicted[row["id"]]["probability"] for row in rows]
    assert [float(row["score"]) for row in rows] == pytest.approx([1 - one for one in best], abs=1e-4)
    assert best == pytest.approx(sorted(best), abs=1e-6) and marked == [row["id"] for row in rows[: len(marked)]]
    note = f'{len(marked)} of {len(rows)} videos are marked "new class?"'
    assert f"note: {note}" in capsys.readouterr().out
    assert "new class? like none of the classes" in (again / "suggest" / "label.html").read_text(encoding="utf-8")

    assert run(suggest.main, [str(again), *words]) == DONE  # by what training saved: of clips, for which there is no threshold
    assert 'no video is marked "new class?", because that takes held-out videos: jobs.predict RUN' in capsys.readouterr().out
    assert "new class?" not in (again / "suggest" / "suggest.csv").read_text(encoding="utf-8")
