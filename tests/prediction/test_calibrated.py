"""Probabilities are calibrated by the temperatures of the very weights and protocol, and every output says whether they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import export, predict, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.evaluation.calibration import apply_temperatures
from pipeline.evaluation.protocol import collect_protocol
from pipeline.manifest.schema import read_manifest
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.run_folder.contents import PREDICTORS
from pipeline.saved_models.saved_model import open_model
from pipeline.saved_models.saved_temperatures import read_temperatures

VALUES = {"primary": 0.5, "auxiliary": None, "mean": 2.0}
"""The auxiliary has none, as where all held-out videos are right."""


@pytest.fixture(scope="module")
def one(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with temperatures as ``jobs.evaluate --calibrate`` writes them."""
    storage = tmp_path_factory.mktemp("calibrated")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={storage}", "train.steps=1", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    write_temperatures(storage / "tiny")
    return storage / "tiny"


def write_temperatures(folder: Path, **changed: Any) -> None:
    saved = open_model(folder)
    content: dict[str, Any] = {name: {"temperature": value} for name, value in VALUES.items()}
    content |= {"step": saved.step, "videos": 40, "weights_sha256": compute_sha256(saved.weights)}
    content |= {"protocol": collect_protocol(saved.config) | {"split": "validation"}, **changed}
    (folder / "calibration.json").write_text(json.dumps(content), encoding="utf-8")


def find_video(tiny: Path) -> str:
    manifest = read_manifest(tiny / "manifest.parquet")
    return manifest.locate(int(manifest.find_usable_rows("test")[0]))


def predict_one(folder: Path, video: str, out: Path, *words: str) -> dict[str, Any]:
    assert run(predict.main, [str(folder), video, "--out", str(out), *words]) == DONE
    row: dict[str, Any] = pq.read_table(out).to_pylist()[0]
    return row


def test_a_run_and_its_model_predict_calibrated_probabilities(
    one: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, out = find_video(tiny), tmp_path / "scores.parquet"
    plain = predict_one(one, video, out, "--uncalibrated")
    assert plain["calibrated"] is False and "calibrated" not in capsys.readouterr().err
    calibrated = predict_one(one, video, out)
    note = "note: probabilities are calibrated, by temperatures of 40 held-out videos: 0.5 (primary), 2 (mean)\n"
    assert note in capsys.readouterr().err
    assert json.loads(pq.read_schema(out).metadata[b"actnetformer"])["temperatures"] == {"primary": 0.5, "mean": 2.0}
    assert calibrated["calibrated"] is True and calibrated["class"] == plain["class"]
    for name, temperature in VALUES.items():
        powers = np.array(plain[name]) ** (1 / (temperature or 1.0))
        np.testing.assert_allclose(calibrated[name], powers / powers.sum(), rtol=1e-5)
    assert calibrated["probability"] == pytest.approx(max(calibrated["mean"]), abs=1e-6) != plain["probability"]
    assert calibrated["top_probabilities"][0] == calibrated["probability"]
    assert run(export.main, [str(one), str(tmp_path / "model")]) == DONE
    by_model = predict_one(tmp_path / "model", video, out)  # whose file of weights is another
    assert by_model["calibrated"] is True and by_model["mean"] == pytest.approx(calibrated["mean"], abs=1e-6)


def test_timelines_are_calibrated_and_every_format_says_so(one: Path, tiny: Path, tmp_path: Path) -> None:
    words = [str(one), find_video(tiny), "--window", "1s", "--out"]
    for more in ([], ["--uncalibrated"]):
        assert run(predict.main, [*words, str(tmp_path / "timeline.csv"), *more]) == DONE
        with (tmp_path / "timeline.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["calibrated"] for row in rows} == {"false" if more else "true"}
    assert run(predict.main, [str(one), find_video(tiny), "--out", str(tmp_path / "scores.jsonl")]) == DONE
    assert json.loads((tmp_path / "scores.jsonl").read_text())["calibrated"] is True


@pytest.mark.parametrize(
    ("changed", "words", "why"),
    [
        ({}, ["evaluation.clips=1"], "of 2 clips x 1 crops, mean of probabilities, fp32, and this is 1 clips x 1 crops"),
        ({}, ["evaluation.average=logits"], "and this is 2 clips x 1 crops, mean of logits, fp32"),
        ({"weights_sha256": "0" * 64}, [], "temperatures of other weights"),
        ({"step": 7}, [], "temperatures of other weights"),
        ({name: {"temperature": None} for name in PREDICTORS}, [], "found no temperature that makes them better"),
    ],
)
def test_temperatures_of_something_else_are_not_applied(
    changed: dict[str, Any],
    words: list[str],
    why: str,
    one: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_temperatures(one, **changed)
    try:
        assert predict_one(one, find_video(tiny), tmp_path / "scores.parquet", *words)["calibrated"] is False
    finally:
        write_temperatures(one)
    said = capsys.readouterr().err
    assert "note: probabilities are not calibrated: " in said and why in said


@pytest.mark.parametrize("value", ["2", 0.0, -1.0, 1e9, float("nan"), True])
def test_what_is_no_temperature_is_refused(value: Any, one: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_temperatures(one, mean={"temperature": value})
    try:
        assert run(predict.main, [str(one), find_video(tiny)]) == USER_ERROR
    finally:
        write_temperatures(one)
    assert f"{one / 'calibration.json'}: mean.temperature is " in capsys.readouterr().err


def test_a_damaged_file_is_refused_and_no_file_is_no_calibration(one: Path, tmp_path: Path) -> None:
    saved = open_model(one)
    assert read_temperatures(saved).is_calibrated
    (one / "calibration.json").unlink()
    try:
        assert read_temperatures(saved) == type(read_temperatures(saved))()
        (one / "calibration.json").write_text("[1")
        with pytest.raises(Exception, match="cannot be read"):
            read_temperatures(saved)
    finally:
        write_temperatures(one)


def test_probabilities_of_one_are_themselves() -> None:
    scores = {"mean": np.array([0.2, 0.5, 0.3])}
    np.testing.assert_allclose(apply_temperatures(scores, {"mean": 1.0})["mean"], scores["mean"])
    assert apply_temperatures(scores, {}) == scores
