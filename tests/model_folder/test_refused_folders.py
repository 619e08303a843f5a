"""Nothing in a model folder is executed or taken on trust: what is refused, and in which words."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from jobs import evaluate, predict
from jobs.command import DONE, USER_ERROR, run
from pipeline.model_folder.read_folder import CHECKSUMS, REQUIRED
from tests.model_folders import read, rewrite, seal, video_of


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
    assert "is not a safetensors file" in capsys.readouterr().err
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
