"""A model folder: what it holds, what it does without its run, and that nothing in it is executed or taken on trust."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from jobs import compare, evaluate, export, predict, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.evaluation.protocol import collect_protocol, describe_protocol
from pipeline.export import model_folder_writer
from pipeline.lifecycle.saved_model import open_model
from pipeline.manifest.schema import read_manifest
from pipeline.model_folder.read_folder import CHECKSUMS, REQUIRED


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("export")
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={storage}", "train.steps=2", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    return storage / "tiny"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "drift"
    assert run(export.main, [str(trained), str(out)]) == DONE
    return out


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "drift"))


def video_of(tiny: Path) -> str:
    manifest = read_manifest(tiny / "manifest.parquet")
    return manifest.locate(int(manifest.find_usable_rows("test")[0]))


def rewrite(folder: Path, name: str, content: Any) -> None:
    """Changes a file of a model folder, and its checksum, as somebody who wants it to be read would."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    seal(folder)


def seal(folder: Path) -> None:
    names = [path.name for path in sorted(folder.iterdir()) if path.name != CHECKSUMS]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


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


# ------------------------------------------------------------------------------------------------- what is refused


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.target}'",)


def test_nothing_in_a_folder_is_executed(model: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pickles under every name that a loader might look for, code beside them, and a configuration that points to them."""
    harm = tmp_path / "harm"
    loaded = pickle.dumps(Planted(harm))
    pickle.loads(loaded)
    assert harm.exists(), "the planted pickle does nothing, so that this test would show nothing"
    harm.unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "training_args.bin"):
        (model / name).write_bytes(loaded)
    for name in ("conftest.py", "modeling.py", "sitecustomize.py", "__init__.py", "torch.py"):
        (model / name).write_text(f"open({str(harm)!r}, 'w')\n")
    video = video_of(tiny)
    assert run(predict.main, [str(model), video]) == DONE
    assert run(evaluate.main, [str(model), "--manifest", str(tiny / "manifest.parquet")]) == DONE
    config = read(model, "config.json")
    rewrite(model, "model.safetensors", loaded)
    assert run(predict.main, [str(model), video]) == USER_ERROR
    assert "is no safetensors file" in capsys.readouterr().err
    attacks: list[dict[str, Any]] = [
        {**config, "auto_map": {"AutoModel": "modeling.Model"}},
        {**config, "tracking": {"mlflow": f"file://{harm}"}},
        {**config, "run": {"storage_path": str(harm)}},
        {**config, "data": {**config["data"], "root": "/etc"}},
        {**config, "train": {**config["train"], "compile": "inductor"}},
        {**config, "primary": {**config["primary"], "network": {**config["primary"]["network"], "weights": "model.pth"}}},
        {**config, "primary": {**config["primary"], "network": {"arch": "os.system"}}},
    ]
    for attack in attacks:
        rewrite(model, "config.json", attack)
        assert run(predict.main, [str(model), video]) == USER_ERROR
        assert "config.json" in capsys.readouterr().err
    rewrite(model, "config.json", b'!!python/object/apply:os.system ["touch ' + str(harm).encode() + b'"]')
    assert run(predict.main, [str(model), video]) == USER_ERROR
    assert "cannot be read as JSON" in capsys.readouterr().err
    assert not harm.exists()


@pytest.mark.parametrize("name", [*REQUIRED, CHECKSUMS])
def test_a_missing_and_an_altered_file_are_named(
    name: str, model: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / name
    content = path.read_bytes()
    path.write_bytes(content + b" " if name != CHECKSUMS else content.replace(b"  ", b" x", 1))
    for command, words in ((predict.main, [video_of(tiny)]), (evaluate.main, ["--manifest", str(tiny / "manifest.parquet")])):
        assert run(command, [str(model), *words]) == USER_ERROR
        said = capsys.readouterr().err
        assert name in said or "has no checksum in SHA256SUMS" in said
        assert "export or download it again" in said and said.startswith("error: ")
    path.unlink()
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    said = capsys.readouterr().err
    assert f"{name} is missing" in said and "export or download it again" in said


def test_other_class_counts_and_other_networks_are_said(model: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, config = read(model, "labels.json"), read(model, "config.json")
    rewrite(model, "labels.json", [*labels, "a fifth"])
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    assert "the primary network has 4 classes, labels.json names 5" in capsys.readouterr().err
    rewrite(model, "labels.json", labels[:3] + labels[:1])
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    assert "names a class twice" in capsys.readouterr().err
    rewrite(model, "labels.json", labels)
    huge = {**config, "auxiliary": {**config["auxiliary"], "network": {**config["auxiliary"]["network"], "width": 2**16}}}
    rewrite(model, "config.json", huge)
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    assert "does not fit config.json" in capsys.readouterr().err
    rewrite(model, "config.json", {**config, "format_version": 2})
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    assert "update it" in capsys.readouterr().err
    rewrite(model, "config.json", config)
    tensors = load_file(model / "model.safetensors")
    tensors.popitem()
    save_file(tensors, model / "model.safetensors")
    seal(model)
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    assert "is missing" in capsys.readouterr().err
    preprocessing = read(model, "preprocessor_config.json")
    rewrite(model, "preprocessor_config.json", {**preprocessing, "image_mean": [0.5] * 3})
    assert run(predict.main, [str(model), video_of(tiny)]) == USER_ERROR
    assert "image_mean" in capsys.readouterr().err


def test_data_of_other_classes_is_refused_and_of_some_known_ones_said(
    model: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read(model, "labels.json")
    rewrite(model, "labels.json", ["a", "b", "c", "d"])
    training = read(model, "training.json")
    training["fingerprints"]["manifest"] = "0" * 16
    rewrite(model, "training.json", training)
    assert run(evaluate.main, [str(model), "--manifest", str(tiny / "manifest.parquet")]) == USER_ERROR
    said = capsys.readouterr().err
    assert "is of a class that drift knows" in said and "of the run: a" in said
    rewrite(model, "labels.json", [*labels[:3], "another"])
    assert run(evaluate.main, [str(model), "--manifest", str(tiny / "manifest.parquet")]) == DONE
    note = "2 videos of classes that the run does not know are left out of these accuracies: drift_up (2)"
    assert note in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- writing the folder


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
    assert "is no run folder" in capsys.readouterr().err and not (tmp_path / "new").exists()


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


def test_programs_compute_the_same_on_real_clips_for_any_number_of_them(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run(export.main, [str(trained), str(out), "--torch-export"]) == DONE
    said = capsys.readouterr().out
    assert all(f"{name}_program.pt2: largest difference of a probability" in said for name in ("primary", "auxiliary", "mean"))
    assert "on 8 real clips" in said
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=out, capture_output=True, check=True)
    assert done.stdout.count(b"_program.pt2: OK") == 3
    program = torch.export.load(out / "mean_program.pt2").module()
    frames = torch.randint(0, 256, (5, 4, 40, 40, 3), dtype=torch.uint8)
    probabilities = program(frames, frames)
    assert probabilities.shape == (5, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))
    assert run(predict.main, [str(out), video_of(tiny)]) == DONE
    capsys.readouterr()
    absent = ["--torch-export", "--check-on", str(tmp_path / "absent.mp4")]
    assert run(export.main, [str(trained), str(out), *absent]) == USER_ERROR
    assert "--check-on" in capsys.readouterr().err


def test_a_program_that_computes_something_else_is_not_written(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.export.network_programs.MEAN", 0.0)  # another normalization than evaluation's
    words = [str(trained), str(tmp_path / "model"), "--torch-export", "--check-on", video_of(tiny)]
    assert run(export.main, words) == USER_ERROR
    assert "program differs by" in capsys.readouterr().err and not (tmp_path / "model").exists()
