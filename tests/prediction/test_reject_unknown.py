"""Videos whose probability is below that of nearly all held-out ones are marked; a run and its model say the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import evaluate, export, label, predict, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from pipeline.prediction import prediction_run


@pytest.fixture(scope="module")
def calibrated(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, calibrated on 12 held-out videos; ``labels.parquet`` beside it."""
    folder = tmp_path_factory.mktemp("rejecting")
    labels = folder / "labels.parquet"
    words = ["--per-class", "6", "--hold-out", "50%", "--out", str(labels)]
    assert run(label.main, [str(tiny / "manifest.parquet"), *words]) == DONE
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={folder}", f"data.labels={labels}"]
    assert run(train.main, [*words, "method.name=supervised", "train.steps=1", "train.warmup_steps=0"]) == DONE
    assert run(evaluate.main, [str(folder / "tiny"), "--calibrate"]) == DONE
    return folder / "tiny"


def predict_all(folder: Path, tiny: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    assert run(predict.main, [str(folder), str(tiny / "manifest.parquet"), "--out", str(out), *words]) == DONE
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", [[], ["--uncalibrated"]])
def test_held_out_videos_are_rejected_as_often_as_promised(
    calibrated: Path, tiny: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predict_all(calibrated, tiny, tmp_path / "scores.parquet", "--reject-unknown", "25%", *words)
    said = capsys.readouterr()
    about = json.loads(pq.read_schema(tmp_path / "scores.parquet").metadata[b"actnetformer"])["rejection"]
    assert (about["share"], about["videos"], about["below"]) == (0.25, 12, 2)  # the third of 12: at most 3 of 13
    manifest = read_manifest(tiny / "manifest.parquet")
    held_out = read_labels(calibrated.parent / "labels.parquet", manifest).held_out.tolist()
    saved = json.loads((calibrated / "calibration.json").read_text(encoding="utf-8"))
    is_calibrated = saved["mean"]["temperature"] is not None and not words
    confidences = saved["confidences"]["after" if is_calibrated else "before"]
    assert sorted(rows[row]["probability"] for row in held_out) == pytest.approx(confidences, abs=1e-5)
    assert about["threshold"] == confidences[2]
    rejected = [row["probability"] < about["threshold"] for row in rows]
    assert [row["rejected"] for row in rows] == rejected and 0 < sum(rejected) < len(rows)
    assert 2 <= sum(rejected[row] for row in held_out) <= 3  # that at the threshold may be a rounding below it
    assert all(row["status"] == "ok" and row["class"] for row in rows)
    assert f"{sum(rejected)} of 32 predicted videos are rejected" in said.out
    assert said.out.count("none of the known classes? ") == sum(rejected)
    note = (
        f"videos whose probability is below {confidences[2]:.4f} are rejected as none of the known classes; so are at most 25%"
    )
    assert note in said.err and "and 2 of 12 held-out videos" in said.err


@pytest.mark.timeout(600)
def test_a_model_and_every_format_say_the_same_also_after_an_interruption(
    calibrated: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predict_all(calibrated, tiny, tmp_path / "run.parquet", "--reject-unknown", "25%")
    assert run(export.main, [str(calibrated), str(tmp_path / "model")]) == DONE
    by_model = predict_all(tmp_path / "model", tiny, tmp_path / "model.parquet", "--reject-unknown", "25%")
    assert [row["rejected"] for row in by_model] == [row["rejected"] for row in rows]

    manifest = str(tiny / "manifest.parquet")
    monkeypatch.setattr(prediction_run, "CHUNK", 20)
    words = [str(calibrated), manifest, "--reject-unknown", "25%", "--out"]
    with monkeypatch.context() as patched:
        patched.setattr(prediction_run, "write_predictions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(predict.main, [*words, str(tmp_path / "again.csv")]) == 130
    capsys.readouterr()
    assert run(predict.main, [*words, str(tmp_path / "again.csv")]) == DONE
    said = capsys.readouterr()
    assert "32 of 32 videos were predicted by an earlier command" in said.err
    assert f"{sum(row['rejected'] for row in rows)} of 32 predicted videos are rejected" in said.out
    with (tmp_path / "again.csv").open(encoding="utf-8") as file:
        assert [row["rejected"] for row in csv.DictReader(file)] == [str(row["rejected"]).lower() for row in rows]
    video = read_manifest(manifest).locate(0)
    assert run(predict.main, [str(calibrated), video, "--out", str(tmp_path / "plain.jsonl")]) == DONE
    assert json.loads((tmp_path / "plain.jsonl").read_text(encoding="utf-8"))["rejected"] is None


@pytest.mark.timeout(600)
def test_a_promise_that_cannot_be_kept_is_refused(
    calibrated: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = read_manifest(tiny / "manifest.parquet").locate(0)
    calibration = calibrated / "calibration.json"
    for words, problem in (
        (["5%"], f"--reject-unknown 5% needs at least 19 held-out videos, and {calibration} is of 12: hold out more"),
        (["5%"], "or write 7.7% or more"),
        (["60%"], "would mark most known videos: write at most 50%"),
        (["0.05"], "--reject-unknown '0.05' is not understood"),
        (["25%", "--window", "1s"], "--reject-unknown cannot be used with --window"),
        (["25%", "evaluation.clips=1"], "2 clips x 1 crops, mean of probabilities, fp32, and this is 1 clips x 1 crops"),
        (["25%", "--uncalibrated", "evaluation.clips=1"], f"{calibration} has none"),
    ):
        assert run(predict.main, [str(calibrated), video, "--reject-unknown", *words]) == USER_ERROR
        assert problem in capsys.readouterr().err
    text = calibration.read_text(encoding="utf-8")
    try:
        for change, problem in (
            ({"confidences": None}, "--calibrate writes them, and jobs.export takes them along"),  # an earlier version's
            ({"confidences": {"before": [2.0], "after": [2.0]}}, "is not a list of numbers from 0 to 1: calibrate again"),
        ):
            calibration.write_text(json.dumps(json.loads(text) | change), encoding="utf-8")
            assert run(predict.main, [str(calibrated), video, "--reject-unknown", "25%"]) == USER_ERROR
            assert problem in capsys.readouterr().err
        calibration.unlink()
        assert run(predict.main, [str(calibrated), video, "--reject-unknown", "25%"]) == USER_ERROR
        assert "must be kept from training, by jobs.label --hold-out 10%" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    finally:
        calibration.write_text(text, encoding="utf-8")
