"""The configurations of the paper's settings: each is built at full size, and its arithmetic is printed (``pytest -s``)."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from jobs import label, prepare
from pipeline.clips.batch import Batch
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.methods import METHODS, STUDENTS, LossWeights, build_method, first_unlabeled_step, make_views
from pipeline.studies.ablation import plan_trials
from pipeline.studies.study_file import read_study

STUDIES = Path(__file__).resolve().parent.parent / "jobs" / "studies"
CONFIGS = Path(__file__).resolve().parent.parent / "jobs" / "configs"
SETTINGS = {  # classes, training videos, labeled ones: UCF-101 and HMDB-51 as their lists count, Kinetics-400 about
    "ucf101_1pct": (101, 9_537, 101),
    "ucf101_10pct": (101, 9_537, 1_010),
    "hmdb51_40pct": (51, 5_236, 2_094),
    "hmdb51_50pct": (51, 5_236, 2_618),
    "hmdb51_60pct": (51, 5_236, 3_141),
    "kinetics400_1pct": (400, 240_000, 2_400),
    "kinetics400_10pct": (400, 240_000, 24_000),
}
EACH = pytest.mark.parametrize("name", SETTINGS)
MILLIONS = {51: 62.31, 101: 62.43, 400: 63.16}
"""Parameters of both students by classes; the paper says 62.3."""


def config_of(name: str, *words: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", words)


def test_no_setting_of_the_paper_is_missing() -> None:
    sets = ("ucf101", "hmdb51", "kinetics400")
    assert {path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(sets)} == set(SETTINGS)


@EACH
def test_arithmetic(name: str) -> None:
    """250 passes over the unlabeled videos on 8 GPUs; what must be decoded per second to be done in three days."""
    config, (classes, videos, labeled) = config_of(name), SETTINGS[name]
    batch, ratio = config.data.labeled_per_step, config.data.unlabeled_per_labeled
    epochs = config.train.steps * batch * ratio / (videos - labeled)
    per_step = batch * (1 + ratio)
    needed = config.train.steps * per_step / (72 * 3600)
    with torch.device("meta"):
        method = build_method(config, classes, videos, videos - labeled)
    parameters = sum(p.numel() for p in method.students.parameters()) / 1e6
    print(
        f"\n{name}: {config.train.steps} steps of {batch} labeled + {batch * ratio} unlabeled = {epochs:.1f} epochs, "
        f"{per_step // 8} videos a GPU, {parameters:.2f} M parameters, {needed:.0f} videos/s to be done in 72 h"
    )
    assert math.isclose(epochs, 250, abs_tol=0.1)
    assert batch % config.scale.workers == 0
    assert config.scale.workers == 8
    assert round(parameters, 2) == MILLIONS[classes]
    section = config.method
    assert (section.pseudo_label_weight, section.contrast_weight, section.confidence_threshold) == (2, 2, 0.8)
    assert (config.primary.clip.frames, config.primary.clip.size, config.primary.network.weights) == (8, 224, None)


@EACH
def test_every_method_builds_with_its_own_papers_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.methods.check_modalities", lambda _: None)  # MvPL's flow, as if OpenCV were there
    classes, videos, labeled = SETTINGS[name]
    found = {}
    for trial in plan_trials(read_study(STUDIES / "methods_paper.yaml"), config_of(name), seeds=1):
        with torch.device("meta"):
            built = build_method(trial.config, classes, videos, videos - labeled)
        found[trial.cell] = sum(p.numel() for p in built.students.parameters()) / 1e6
        assert first_unlabeled_step(trial.config) < trial.config.train.steps or trial.cell == "supervised"
        assert trial.config.method.supervised_steps + trial.config.method.start.pseudo_label < trial.config.train.steps
    print(f"\n{name}, M parameters: " + ", ".join(f"{cell} {millions:.2f}" for cell, millions in found.items()))
    assert {cell.split("-")[0] for cell in found} == set(METHODS)
    wanted = {51: (51.8, 67.4), 101: (51.9, 67.5), 400: (52.7, 67.8)}[classes]
    assert (round(found["cmpl"], 1), round(found["ltg"], 1)) == wanted
    assert found["actnetformer"] == found["mvpl"] == found["supervised"]


@EACH
def test_the_header_has_the_commands_that_make_its_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options exist, or argparse would end the process; only the videos and the manifest are missing here."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").replace("\\\n#", "")
    commands = [shlex.split(words) for words in re.findall(r"^# +python -m jobs\.(.*)$", text, flags=re.MULTILINE)]
    assert [words[0] for words in commands] == ["prepare", "label"]
    data = config_of(name).data
    assert f"{commands[0][3]}/manifest.parquet" == commands[1][1] == data.manifest
    assert commands[1][commands[1].index("--out") + 1] == data.labels
    monkeypatch.chdir(tmp_path)
    for main, (_, *words) in zip((prepare.main, label.main), commands, strict=True):
        with pytest.raises(UserError):
            main(words)


@EACH
@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds_in_every_setting(name: str, method: str) -> None:
    classes, videos, labeled = SETTINGS[name]
    with torch.device("meta"):
        built = build_method(config_of(name, f"method.name={method}"), classes, videos, videos - labeled)
    assert list(built.students) == list(STUDENTS)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["actnetformer", "mvpl", "svformer"])  # a minute each
def test_one_step_at_full_size(method: str) -> None:
    """Both students at 224 pixels, one labeled and two unlabeled videos: the loss is finite and every gradient is there."""
    config = config_of("ucf101_1pct", f"method.name={method}")
    torch.manual_seed(0)
    built = build_method(config, 101, 3, 2)

    def clips(student: str) -> torch.Tensor:
        clip = getattr(config, student).clip
        return torch.randint(0, 256, (1, 3, clip.frames, 256, 256, 3), dtype=torch.uint8)

    numbers = torch.arange(3)[None]
    batch = Batch(torch.arange(1), numbers, numbers, clips("primary"), clips("auxiliary"))
    loss = built(make_views(batch, config, 0, "cpu"), LossWeights(2.0, 2.0, 1.0, 1.0, 2.0))["loss"]
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert [key for key, value in built.named_parameters() if value.requires_grad and value.grad is None] == []
