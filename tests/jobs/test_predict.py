"""A real run asked about real files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, predict, train
from jobs.command import DONE, FAILED, USER_ERROR, run
from pipeline.evaluation import on_ray
from pipeline.manifest.schema import read_manifest
from pipeline.prediction import prediction_run
from pipeline.prediction.prediction_parts import Parts


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
    rows = manifest.find_usable_rows("test")[:3][::-1]
    files = [shutil.copy(manifest.locate(row), tmp_path / f"{place}.mp4") for place, row in enumerate(rows)]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "scores.parquet"
    words = [str(trained), str(files[0]), str(broken), *map(str, files[1:]), "--out", str(out), "--top", "1"]
    assert run(predict.main, words) == FAILED  # one of them
    printed = capsys.readouterr().out.splitlines()
    assert printed.pop() == f"3 of 4 videos predicted; not predicted: 1 {pq.read_table(out)['status'][1]}: {out}"
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


def test_few_views_are_scored_in_this_process_whatever_the_number_of_workers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tests/evaluation/test_continued_on_ray.py`` scores them on Ray."""
    again = shutil.copytree(trained, tmp_path / "tiny")
    (again / "predictions.parquet").unlink()
    monkeypatch.setattr(on_ray, "score_on_ray", None)
    assert run(evaluate.main, [str(again), "scale.workers=2"]) == DONE
    theirs, mine = (pq.read_table(folder / "predictions.parquet") for folder in (trained, again))
    assert mine["id"] == theirs["id"] and mine.num_rows == 8
    for name in ("primary", "auxiliary", "mean"):
        np.testing.assert_allclose(np.stack(mine[name].to_numpy()), np.stack(theirs[name].to_numpy()), rtol=1e-4)


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_predicts_the_same_in_the_same_order(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are probed and rows of a manifest, some of which cannot be used, in two chunks: the second, of two videos, is
    scored by one actor."""
    manifest = read_manifest(tiny / "manifest.parquet")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    shutil.copy(manifest.locate(3), tmp_path / "b.mp4")
    words = [str(trained), str(tmp_path / "a.mp4"), str(tiny / "manifest.parquet"), str(tmp_path / "b.mp4"), "--out"]
    assert run(predict.main, [*words, str(tmp_path / "here.parquet")]) == FAILED
    monkeypatch.setattr("pipeline.evaluation.score_videos.FEW_VIEWS", 0)
    monkeypatch.setattr(prediction_run, "CHUNK_ON_RAY", 32)
    assert run(predict.main, [*words, str(tmp_path / "there.parquet"), "--workers", "2"]) == FAILED
    here, there = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    assert here.num_rows == 34 and here.select(["file", "status"]).equals(there.select(["file", "status"]))
    for name in ("primary", "auxiliary", "mean"):
        mine, theirs = (np.stack(table[name].drop_null().to_numpy()) for table in (here, there))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_prediction_on_a_cluster_that_was_killed_continues_in_order(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In chunks of five videos, the third of which is not written; the first and second are not scored again."""
    monkeypatch.setattr("pipeline.evaluation.score_videos.FEW_VIEWS", 0)
    monkeypatch.setattr(prediction_run, "CHUNK_ON_RAY", 5)
    manifest = read_manifest(tiny / "manifest.parquet")
    files = [manifest.locate(row) for row in range(15)]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files[7] = str(tmp_path / "broken.mp4")
    words = [str(trained), *files, "--workers", "2", "--out"]
    assert run(predict.main, [*words, str(tmp_path / "whole.parquet")]) == FAILED
    write = Parts.write

    def die(parts: Parts, chunk: int, table: object) -> None:
        if chunk == 2:
            raise KeyboardInterrupt
        write(parts, chunk, table)

    out = tmp_path / "again.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", die)
        assert run(predict.main, [*words, str(out)]) == 130
    assert not out.exists()
    capsys.readouterr()
    assert run(predict.main, [*words, str(out)]) == FAILED
    said = capsys.readouterr()
    assert "10 of 15 videos were predicted by an earlier command" in said.err
    assert [line.split("  ")[0] for line in said.out.splitlines()[:15]] == files
    again, whole = pq.read_table(out), pq.read_table(tmp_path / "whole.parquet")
    assert again["file"].to_pylist() == files and again.equals(whole)


def test_what_cannot_be_predicted_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert run(predict.main, [str(trained), str(empty), str(tmp_path / "absent.mp4")]) == USER_ERROR
    said = capsys.readouterr().err
    assert "none of the 2 videos can be used" in said and "empty.mp4: " in said and "absent.mp4: " in said
    assert run(predict.main, [str(trained), str(empty), str(empty)]) == USER_ERROR
    assert "named twice" in capsys.readouterr().err
    assert run(predict.main, [str(tmp_path), str(empty)]) == USER_ERROR
    assert run(predict.main, [str(trained), str(empty), "--out", str(tmp_path / "no" / "x.parquet")]) == USER_ERROR
    assert "there is no folder" in capsys.readouterr().err


def test_every_format_says_the_same(trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list with a part of a file, a folder and a missing file, in this order, in all three formats."""
    manifest = read_manifest(tiny / "manifest.parquet")
    one, other = (manifest.locate(int(row)) for row in manifest.find_usable_rows("test")[:2])
    (tmp_path / "list.csv").write_text(f"path,start,end\n{one},0,0.5\n{tmp_path}/absent.mp4,,\n")
    (tmp_path / "folder").mkdir()
    shutil.copy(other, tmp_path / "folder" / "b.mp4")
    tables = {}
    for suffix in ("parquet", "jsonl", "csv"):
        out = tmp_path / f"scores.{suffix}"
        words = [str(trained), str(tmp_path / "list.csv"), str(tmp_path / "folder"), "--out", str(out), "--top", "2"]
        assert run(predict.main, words) == FAILED
        text = out.read_text(encoding="utf-8") if suffix != "parquet" else ""
        tables[suffix] = {
            "parquet": lambda out=out: pq.read_table(out).to_pylist(),
            "jsonl": lambda text=text: [json.loads(line) for line in text.splitlines()],
            "csv": lambda text=text: list(csv.DictReader(text.splitlines())),
        }[suffix]()
    exact = tables["parquet"]
    assert [row["file"] for row in exact] == [one, f"{tmp_path}/absent.mp4", f"{tmp_path}/folder/b.mp4"]
    assert [(row["status"], row["reason"]) for row in exact] == [("ok", ""), ("missing", "no such file"), ("ok", "")]
    assert (exact[0]["start"], exact[0]["end"]) == (0, 0.5) and exact[1]["class"] is None
    for row in (exact[0], exact[2]):
        order = np.argsort(row["mean"])[::-1][:2]
        assert row["top_classes"] == [manifest.classes[index] for index in order] and row["class"] == row["top_classes"][0]
        assert row["agree"] == (row["primary_class"] == row["auxiliary_class"])
        assert row["primary_class"] == manifest.classes[int(np.argmax(row["primary"]))]
        np.testing.assert_allclose(row["top_probabilities"], np.array(row["mean"])[order], rtol=1e-6)
        assert np.sum(row["mean"]) == pytest.approx(1, abs=1e-5)
    about = json.loads(pq.read_schema(tmp_path / "scores.parquet").metadata[b"actnetformer"])
    assert about["classes"] == list(manifest.classes)
    assert tables["jsonl"] == [{key: row[key] for key in row if key not in ("primary", "auxiliary", "mean")} for row in exact]
    for row, text in zip(exact, tables["csv"], strict=True):
        assert text["file"] == row["file"] and text["class"] == (row["class"] or "") and text["status"] == row["status"]
        if row["class"]:
            assert text["class_2"] == row["top_classes"][1] and float(text["probability_2"]) == row["top_probabilities"][1]
            assert text["agree"] == str(row["agree"]).lower()


def test_a_killed_prediction_continues_and_becomes_the_same_table(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction_run, "CHUNK", 3)
    monkeypatch.setattr(prediction_run, "FEW", 4)
    words = [str(trained), str(tiny / "manifest.parquet"), "evaluation.clips=1", "--out"]
    assert run(predict.main, [*words, str(tmp_path / "whole.parquet")]) == DONE
    assert "32/32" in capsys.readouterr().err  # the progress
    write = Parts.write

    def die(parts: Parts, chunk: int, table: object) -> None:
        if chunk == 6:
            raise KeyboardInterrupt
        write(parts, chunk, table)

    out = tmp_path / "again.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", die)
        assert run(predict.main, [*words, str(out)]) == 130
    (folder,) = tmp_path.glob(".again.parquet.*")
    (folder / "part-000002.parquet").write_bytes(b"half of a file")
    assert not out.exists()
    capsys.readouterr()
    assert run(predict.main, [*words, str(out), "--top", "2"]) == DONE  # another table: nothing of the first fits
    assert "earlier command" not in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", die)
        assert run(predict.main, [*words, str(out)]) == 130
    (folder,) = tmp_path.glob(".again.parquet.*")
    (folder / "part-000002.parquet").write_bytes(b"half of a file")
    assert run(predict.main, [*words, str(out)]) == DONE
    assert "15 of 32 videos were predicted by an earlier command" in capsys.readouterr().err
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert pq.read_table(out)["file"].to_pylist() == read_manifest(tiny / "manifest.parquet").table["id"].to_pylist()


def test_a_timeline_has_a_row_for_each_segment(trained: Path, tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    video, out = manifest.locate(0), tmp_path / "timeline.csv"
    words = [str(trained), video, str(tmp_path / "absent.mp4"), "--window", "400ms", "--hop", "200ms", "--out", str(out)]
    page = tmp_path / "page.html"
    assert run(predict.main, [*words, "evaluation.clips=1", "--html", str(page)]) == FAILED
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 12 and "no such file" in text
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    of_video = [row for row in rows if row["file"] == video]
    assert [row["segment"] for row in of_video] == [str(number) for number in range(len(of_video))]
    assert text.count('<span class="color-') == len(of_video)
    assert float(of_video[0]["start"]) == 0
    assert float(of_video[-1]["end"]) == pytest.approx(manifest.table["duration"][0].as_py(), abs=1e-5)
    assert all(row["class"] in manifest.classes and 0 < float(row["confidence"]) <= 1 for row in of_video)
    assert (rows[-1]["status"], rows[-1]["segment"], rows[-1]["class"]) == ("missing", "", "")


def test_options_that_say_nothing_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--out", str(tmp_path / "x.txt")], "the suffix says the format; write one of .parquet, .jsonl, .csv"),
        (["--html", "x.html"], "--html is a page of timelines"),
        (["--hop", "1s"], "--hop needs --window"),
        (["--window", "1s", "--hop", "2s"], "the hop at most the window"),
        (["--window", "1s", "--hop", "1e-9"], "--hop 1e-09s: windows must be at least 0.01s apart"),  # it took 22 GB
    ):
        assert run(predict.main, [str(trained), "x.mp4", *words]) == USER_ERROR
        assert message in capsys.readouterr().err
