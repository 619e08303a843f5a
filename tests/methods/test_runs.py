"""Every method through the real chain: videos of the ``tiny`` fixture, the loop, a checkpoint, an evaluation; no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import train
from jobs.ablate import STUDIES
from jobs.command import run
from pipeline.methods import METHODS
from pipeline.run_folder.contents import read_metrics
from pipeline.studies.study_file import read_study

CASES = read_study(STUDIES / "methods.yaml").cells


def command(tiny: Path, tmp_path: Path, name: str, *words: str) -> int:
    cell = [f"{key}={json.dumps(value)}" for key, value in CASES[name].items()]
    short = ["train.steps=3", "train.warmup_steps=0", "train.log_every=1", "train.checkpoint_every=2", "evaluation.clips=1"]
    base = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "method.mix.patch=8"]
    return run(train.main, [*base, "method.confidence_threshold=0.2", *short, *cell, *words])


def test_the_study_of_methods_has_every_method() -> None:
    assert {cell["method.name"] for cell in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("name", CASES)
def test_every_method_trains_and_is_evaluated(tiny: Path, tmp_path: Path, name: str) -> None:
    assert command(tiny, tmp_path, name) == 0
    lines = read_metrics(tmp_path / "tiny")
    assert [line["step"] for line in lines] == [1, 2, 3]
    values = [value for line in lines for value in line.values() if value is not None and value != []]
    assert all(torch.tensor(value).isfinite().all() for value in values)  # numbers and histograms
    assert any(key.startswith("pseudo_label_loss") for key in lines[-1]) == (name != "supervised")
    assert json.loads((tmp_path / "tiny" / "evaluation.json").read_text())["videos"] == 8


@pytest.mark.parametrize("policy", ["flexmatch", "softmatch"])
def test_a_resumed_run_equals_one_that_was_not_cut(tiny: Path, tmp_path: Path, policy: str) -> None:
    """Statistics and teachers are part of the checkpoint: 4 steps == 2 steps, and 2 more in another process's state."""
    words = ["method.labels.source=ema", f"method.labels.thresholds={policy}", "method.labels.distribution_alignment=labeled"]
    last = tmp_path / "tiny" / "checkpoint_000004"
    assert command(tiny, tmp_path, "actnetformer", *words, "train.steps=4") == 0
    last.rename(tmp_path / "whole")
    assert command(tiny, tmp_path, "actnetformer", *words, "train.steps=4") == 0
    whole, cut = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", last))
    assert any(key.startswith("labels.teachers.") for key in whole)
    assert any(key.startswith("labels.policies.") for key in whole)
    assert whole.keys() == cut.keys()
    assert [key for key in whole if not torch.equal(whole[key], cut[key])] == []


def test_an_unknown_method_and_a_missing_file_are_one_message(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["method.name=fixmach"], "did you mean fixmatch?"),
        (["primary.network.weights=/nowhere/r50.pth"], "primary.network.weights=/nowhere/r50.pth: there is no such file"),
        (["views.strong.without=[rotat]"], "views.strong.without: there is no rotat"),
    ):
        assert command(tiny, tmp_path, "actnetformer", *words) == 2
        text = capsys.readouterr().err
        assert message in text
        assert "Traceback" not in text
        assert not (tmp_path / "tiny").exists()
