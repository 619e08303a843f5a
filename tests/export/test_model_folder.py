"""A model folder: what it holds, and what it does without its run."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from jobs import compare, evaluate, export, predict, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.evaluation.protocol import collect_protocol, describe_protocol
from pipeline.export import model_folder_writer
from pipeline.model_folder.read_folder import CHECKSUMS, REQUIRED
from pipeline.saved_models.saved_model import open_model
from tests.model_folders import read, rewrite, video_of


def test_the_folder_holds_the_model_and_no_path_of_this_machine(exported: Path, trained: Path, tiny: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())
    assert names == sorted([*REQUIRED, "README.md", CHECKSUMS])
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=exported, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == len(names) - 1
    for path in exported.iterdir():
        content = path.read_bytes()
        assert str(trained.parent).encode() not in content and str(tiny).encode() not in content, path
    assert read(exported, "labels.json") == ["drift_down", "drift_left", "drift_right", "drift_up"]
    config = read(exported, "config.json")
    assert config["primary"]["network"]["depth"] == 10 and config["evaluation"]["clips"] == 2
    assert {"run", "scale", "method", "tracking", "monitors"}.isdisjoint(config)
    assert {name.split(".")[1] for name in load_file(exported / "model.safetensors")} == {"primary", "auxiliary"}
    card = (exported / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "video-classification"
    summary = read(trained, "evaluation.json")
    result = front["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "synthetic", "type": "video", "split": "test"}
    assert [one["value"] for one in result["metrics"]] == [
        round(100 * summary[name]["top1"], 2) for name in ("primary", "auxiliary", "mean")
    ]
    phrase = "2 clips x 1 crop, mean of probabilities, last checkpoint (step 2), 8 fps and 16 fps, 32 px, test split"
    assert all(one["name"].endswith(f"(n = 8; {phrase})") for one in result["metrics"])
    prints = read(trained, "facts.json")["fingerprints"]
    assert all(text in card for text in ("n = 8 videos", "## Limits", "arXiv:2404.06243", *prints.values()))


def test_the_model_alone_predicts_evaluates_and_is_compared(
    model: Path, trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the figures of the run that it is from."""
    manifest = tiny / "manifest.parquet"
    assert run(evaluate.main, [str(model)]) == USER_ERROR
    assert "--manifest FILE" in capsys.readouterr().err
    assert run(evaluate.main, [str(model), "--manifest", str(manifest)]) == DONE
    own, theirs = read(model, "evaluation.json"), read(trained, "evaluation.json")
    assert {name: own[name] for name in ("primary", "auxiliary", "mean", "videos", "clips", "step")} == {
        name: theirs[name] for name in ("primary", "auxiliary", "mean", "videos", "clips", "step")
    }
    mine, listed = (pq.read_table(folder / "predictions.parquet") for folder in (model, trained))
    np.testing.assert_array_equal(np.stack(mine["mean"].to_numpy()), np.stack(listed["mean"].to_numpy()))
    capsys.readouterr()
    assert run(compare.main, [str(model), str(trained)]) == DONE
    assert run(compare.main, [f"{model}:primary", f"{model / 'predictions.parquet'}:auxiliary"]) == DONE
    assert "drift:auxiliary" in capsys.readouterr().out
    for name, content, problem in (
        ("model.safetensors", None, "model.safetensors is missing"),
        ("labels.json", b'["drift_up", "drift_down", "drift_left", "drift_right"]', "labels.json was altered"),
        ("evaluation.json", json.dumps(own | {"weights_sha256": "0" * 64}).encode(), "holds scores of other weights"),
        ("evaluation.json", b"[]", "evaluation.json cannot be read"),
    ):
        kept = (model / name).read_bytes()
        (model / name).unlink() if content is None else (model / name).write_bytes(content)
        for spec in (str(model), f"{model / 'predictions.parquet'}:primary"):
            assert run(compare.main, [spec, str(trained)]) == USER_ERROR
            assert problem in capsys.readouterr().err
        (model / name).write_bytes(kept)
    (model / "predictions_on_0123.parquet").write_bytes((model / "predictions.parquet").read_bytes())
    assert run(compare.main, [str(model), str(trained)]) == USER_ERROR
    assert "predictions_on_0123.parquet" in capsys.readouterr().err
    assert run(predict.main, [str(model), video_of(tiny), "--top", "1"]) == DONE
    assert "drift_" in capsys.readouterr().out


def test_results_of_the_folder_say_which_checkpoint_it_holds(trained: Path, model: Path) -> None:
    saved = open_model(trained)
    best = saved.config.model_copy(update={"evaluation": saved.config.evaluation.model_copy(update={"checkpoint": "best"})})
    training = model_folder_writer.describe_training(replace(saved, config=best))
    for content, phrase in ((None, "last checkpoint"), (training, "checkpoint best on held-out videos")):
        if content:
            rewrite(model, "training.json", content)
        assert phrase in describe_protocol({"protocol": collect_protocol(open_model(model).config)})


@pytest.mark.parametrize(("kept", "other"), [("best", "last"), ("last", "best")])
def test_another_checkpoint_than_the_folder_holds_is_refused(
    model: Path, tiny: Path, kept: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else its results would be told as those of weights that the folder does not have."""
    rewrite(model, "training.json", read(model, "training.json") | {"checkpoint": kept})
    words = [str(model), "--manifest", str(tiny / "manifest.parquet")]
    assert run(evaluate.main, [*words, f"evaluation.checkpoint={other}"]) == USER_ERROR
    said = capsys.readouterr().err
    assert f"evaluation.checkpoint={other}: {model} holds one checkpoint only, its run's {kept}" in said
    assert "export the run again" in said and not (model / "evaluation.json").exists()
    assert open_model(model, [f"evaluation.checkpoint={kept}"], evaluate.ALLOWED).config.evaluation.checkpoint == kept


def test_fine_tuning_starts_from_the_folder(
    model: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [f"{name}.network.weights={model}" for name in ("primary", "auxiliary")]
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "run.name=tuned", *weights]
    frozen = ["train.steps=1", "train.warmup_steps=0", "primary.optimizer.lr=1e-12", "auxiliary.optimizer.lr=1e-12"]
    assert run(train.main, [*words, *frozen, "method.name=supervised"]) == DONE
    (newest,) = (tmp_path / "tuned").glob("checkpoint_*")
    before, after = load_file(model / "model.safetensors"), load_file(newest / "model.safetensors")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    again = tmp_path / "again"
    assert run(export.main, [str(tmp_path / "tuned"), str(again)]) == DONE
    started = read(again, "training.json")["started_from"]
    assert started == {"primary": "drift", "auxiliary": "drift"}
    assert str(tmp_path).encode() not in (again / "README.md").read_bytes()
    (model / "model.safetensors").write_bytes(b"altered")
    assert run(train.main, [*words, *frozen, "run.name=other"]) == USER_ERROR
    said = capsys.readouterr().err
    assert f"primary.network.weights={model}" in said and "model.safetensors was altered" in said


def test_what_is_exported_is_the_running_mean_of_weights_if_there_is_one(tiny: Path, tmp_path: Path) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.ema_decay=0.9"]
    assert run(train.main, [*words, "train.steps=2", "train.warmup_steps=0"]) == DONE
    assert run(export.main, [str(tmp_path / "tiny"), str(tmp_path / "model")]) == DONE
    (newest,) = (tmp_path / "tiny").glob("checkpoint_*")
    stored, own = load_file(newest / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    for name, value in own.items():
        torch.testing.assert_close(value, stored[name.replace("students.", "averages.", 1)], rtol=0, atol=0)
    assert any(not torch.equal(value, stored[name]) for name, value in own.items())
    assert run(evaluate.main, [str(tmp_path / "model"), "--manifest", str(tiny / "manifest.parquet")]) == DONE
    assert read(tmp_path / "model", "evaluation.json")["mean"] == read(tmp_path / "tiny", "evaluation.json")["mean"]
