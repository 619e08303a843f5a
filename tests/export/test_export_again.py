"""Exports over what is there already, exports that are interrupted, and names that are text to the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from jobs import export
from jobs.command import DONE, USER_ERROR, run
from pipeline.export import model_folder_writer
from pipeline.model_folder.read_folder import compute_sha256
from tests.model_folders import read, rewrite


def test_an_older_export_of_the_same_run_is_replaced_and_nothing_else(
    trained: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(export.main, [str(trained), str(model)]) == DONE
    assert "replaced the export of step 2" in capsys.readouterr().out
    card = model / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(text + "license: mine\n", encoding="utf-8")
    (model / "predictions.parquet").write_bytes(b"scores")
    assert run(export.main, [str(trained), str(model)]) == USER_ERROR
    said = capsys.readouterr().err
    assert "added or edited since" in said and "README.md" in said and "predictions.parquet" in said
    assert "license: mine" in card.read_text(encoding="utf-8")
    (model / "predictions.parquet").unlink()
    card.write_text(text, encoding="utf-8")
    training = read(model, "training.json")
    rewrite(model, "training.json", {**training, "step": 3})
    assert run(export.main, [str(trained), str(model)]) == USER_ERROR
    assert "is of a later step (3)" in capsys.readouterr().err
    rewrite(model, "training.json", {**training, "fingerprints": {**training["fingerprints"], "labels": "0" * 16}})
    assert run(export.main, [str(trained), str(model)]) == USER_ERROR
    said = capsys.readouterr().err
    assert "is the model of another run (tiny)" in said and "choose another OUT" in said
    other = tmp_path / "notes"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for out in (other, other / "thesis.txt", trained):
        assert run(export.main, [str(trained), str(out)]) == USER_ERROR
        assert "choose another OUT" in capsys.readouterr().err
    assert (other / "thesis.txt").read_text() == "mine"
    assert run(export.main, [str(other), str(tmp_path / "new")]) == USER_ERROR
    assert "is not a run folder" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_export_that_is_interrupted_leaves_what_was_there(
    trained: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder_writer, "write_checksums", stop)
    for out in (model, model.parent / "new"):
        assert run(export.main, [str(trained), str(out)]) == 130
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert [path.name for path in model.parent.iterdir()] == ["drift"]


def test_temperatures_of_the_same_weights_are_kept_and_others_are_said_to_be_left_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, out = tmp_path / "tiny", tmp_path / "model"
    shutil.copytree(trained, one)
    (newest,) = one.glob("checkpoint_*")
    weights = newest / "model.safetensors"
    calibration = {
        "step": 2, "protocol": read(one, "evaluation.json")["protocol"], "weights_sha256": compute_sha256(weights), "videos": 9,
    }  # fmt: skip
    (one / "calibration.json").write_text(json.dumps(calibration))
    assert run(export.main, [str(one), str(out)]) == DONE
    assert "calibration.json of" not in capsys.readouterr().out
    (one / "calibration.json").unlink()
    assert run(export.main, [str(one), str(out)]) == DONE
    assert "calibration.json of" not in capsys.readouterr().out and read(out, "calibration.json") == calibration
    assert run(export.main, [str(one), str(out), "evaluation.clips=3"]) == DONE
    said = capsys.readouterr().out
    assert "note: calibration.json of the replaced export is left out: it is not of step 2 and this protocol" in said
    assert not (out / "calibration.json").exists()
    (one / "calibration.json").write_text(json.dumps({**calibration, "step": 1}))
    assert run(export.main, [str(one), str(out)]) == DONE
    assert "note: calibration.json of the run is left out" in capsys.readouterr().out
    assert not (out / "calibration.json").exists()


def test_programs_that_are_not_written_again_are_said_to_be_gone(
    trained: Path, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(programs, tmp_path / "model"))
    assert run(export.main, [str(trained), str(out)]) == DONE
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "of the replaced export are gone" in line]
    assert "primary.onnx" in note and "mean_int8.onnx" in note and "--onnx-int8" in note and not list(out.glob("*.onnx"))


def test_class_names_and_run_names_are_text_to_the_card(trained: Path, tmp_path: Path) -> None:
    """Front matter is YAML: a class or a data set of any name must not change what it says."""
    one = tmp_path / "tiny"
    shutil.copytree(trained, one)
    summary = read(one, "evaluation.json")
    summary["data"]["source"] = "a: b\n--- x"
    (one / "evaluation.json").write_text(json.dumps(summary))
    assert run(export.main, [str(one), str(tmp_path / "model: 1")]) == DONE
    front = yaml.safe_load((tmp_path / "model: 1" / "README.md").read_text(encoding="utf-8").split("\n---\n")[0])
    assert front["model-index"][0]["name"] == "model: 1"
