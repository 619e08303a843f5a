"""What a trained run, its checkpoints and the model exported from it are, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.analysis.path_description import describe_path
from pipeline.errors import UserError


def test_a_trained_run_and_what_it_wrote(trained: Path) -> None:
    found = describe_path(trained)
    assert (found["what"], found["state"]) == ("run", "complete")
    assert "mean" in found["top-1"] and "clip" in found["protocol"]
    checkpoints = sorted(trained.glob("checkpoint_*"))
    described = describe_path(checkpoints[-1])
    assert described["what"].startswith("checkpoint, whole") and described["run"] == str(trained)
    assert described["fingerprints"] == found["fingerprints"]
    predictions = describe_path(trained / "predictions.parquet")
    assert predictions["what"] == "predictions" and predictions["protocol"] == found["protocol"]


def test_a_model_folder(model: Path) -> None:
    found = describe_path(model)
    assert found["what"].startswith("model, whole")
    assert found["classes"] == len(json.loads((model / "labels.json").read_text()))


@pytest.mark.parametrize("damage", ["model", "checkpoint"])
def test_damage_is_found_by_checksums(model: Path, trained: Path, tmp_path: Path, damage: str) -> None:
    if damage == "model":
        folder = model
    else:
        source = sorted(trained.glob("checkpoint_*"))[-1]
        folder = tmp_path / source.name
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        describe_path(folder)
