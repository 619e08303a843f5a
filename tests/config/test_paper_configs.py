"""The configurations of real data sets: the paper's settings and practical ones. Each is built at full size, on every number of
GPUs that there is a file for, and its arithmetic is printed (``pytest -s``)."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from jobs import label, prepare, train
from jobs.command import run
from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan
from pipeline.config import STUDENTS, Config, load_config
from pipeline.errors import UserError
from pipeline.hardware import Hardware
from pipeline.methods import METHODS, LossWeights, build_method, find_first_unlabeled_step, make_views
from pipeline.studies.ablation import plan_trials
from pipeline.studies.study_file import read_study
from pipeline.training.dry_run import estimate_memory
from pipeline.training.loop import divide_step

STUDIES = Path(__file__).resolve().parents[2] / "jobs" / "studies"
CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
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
PRACTICAL = {"ucf101_practical": (101, 9_537, 1_010), "hmdb51_practical": (51, 5_236, 2_094)}
"""Beside the paper's."""
ALL = SETTINGS | PRACTICAL
GPUS = {  # configurations that are added to one for eight GPUs of 80 GB: how many, gigabytes of each
    None: (8, 80),
    "4": (4, 80),
    "1": (1, 80),
    "1_of_24gb": (1, 24),
}
CONTEXT_GB = 1.5
"""What a GPU's own context, workspaces and fragments may take beside what is counted."""
MILLIONS = {51: 62.31, 101: 62.43, 400: 63.16}
"""Parameters of both students by classes; the paper says 62.3."""


def config_of(name: str, *words: str, gpus: str | None = None) -> Config:
    return load_config(files_of(name, gpus), words)


def files_of(name: str, gpus: str | None = None) -> list[str]:
    return [str(CONFIGS / f"{name}.yaml"), *([str(CONFIGS / "gpus" / f"{gpus}.yaml")] if gpus else [])]


def plan_of(name: str, config: Config) -> Plan:
    _, videos, labeled = ALL[name]
    ratio, rows = config.unlabeled_per_labeled, config.data.labeled_per_step
    return Plan(np.arange(labeled), np.arange(labeled, videos), ratio, rows, config.run.seed)


def test_no_setting_of_the_paper_is_missing() -> None:
    sets = ("ucf101", "hmdb51", "kinetics400")
    assert {path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(sets)} == set(ALL)
    assert {path.stem for path in (CONFIGS / "gpus").iterdir()} == {name for name in GPUS if name}


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
    assert (section.pseudo_label.weight, section.contrast.weight, section.confidence_threshold) == (2, 2, 0.8)
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
        assert find_first_unlabeled_step(trial.config) < trial.config.train.steps or trial.cell == "supervised"
        assert trial.config.method.supervised_steps + trial.config.method.pseudo_label.start < trial.config.train.steps
    print(f"\n{name}, M parameters: " + ", ".join(f"{cell} {millions:.2f}" for cell, millions in found.items()))
    assert {cell.split("-")[0] for cell in found} == set(METHODS)
    wanted = {51: (51.8, 67.4), 101: (51.9, 67.5), 400: (52.7, 67.8)}[classes]
    assert (round(found["cmpl"], 1), round(found["ltg"], 1)) == wanted
    assert found["actnetformer"] == found["mvpl"] == found["supervised"]


@pytest.mark.parametrize("name", PRACTICAL)
def test_a_practical_setting_differs_from_the_papers_in_what_its_header_says(name: str) -> None:
    """ImageNet's weights, lower rates, AdamW, clips of two seconds, labels alone at first; and the same data and batch."""
    config, (_, videos, labeled) = config_of(name), PRACTICAL[name]
    paper = config_of({"ucf101": "ucf101_10pct", "hmdb51": "hmdb51_40pct"}[name.split("_")[0]])
    assert (config.data, config.scale) == (paper.data, paper.scale)
    for student, theirs in ((config.primary, paper.primary), (config.auxiliary, paper.auxiliary)):
        source, _, network = (student.network.weights or "").partition(":")
        assert source == "timm" and timm.is_model_pretrained(network)
        assert student.clip.frames / student.clip.fps == 2.0
        assert student.optimizer.lr < theirs.optimizer.lr
    assert (config.primary.optimizer.algorithm, config.auxiliary.optimizer.algorithm) == ("sgd", "adamw")
    assert config.auxiliary.optimizer.clip_gradient_norm == 1.0
    steps, method = config.train.steps, config.method
    assert (method.supervised_steps, method.ramp_steps) == (steps // 4, steps // 8)
    passes = steps * 160 / (videos - labeled)
    header = " ".join(line.lstrip("# ") for line in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines())
    assert f"{steps:,} steps" in header and f"{passes:.0f} passes over the unlabeled list" in header


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("name", ALL)
def test_fewer_gpus_take_the_same_batch_in_parts_of_the_same_size(name: str, gpus: str | None) -> None:
    """What a file in gpus/ says of BatchNorm's batch and the contrast's negatives follows from these numbers."""
    eight, config = config_of(name), config_of(name, gpus=gpus)
    assert config.scale.workers == GPUS[gpus][0] and config.scale.gpu
    place = {"scale": True, "train": {"accumulation", "activation_checkpointing"}}
    assert config.model_dump(exclude=place) == eight.model_dump(exclude=place)
    parts = divide_step(plan_of(name, config), config, config.scale.workers)
    here = divide_step(plan_of(name, eight), eight, 8)
    assert len(here) == 1 and {rows for part in parts for rows in part} == set(here[0])
    assert sum(rows for part in parts for rows in part) == config.data.labeled_per_step
    if gpus:
        text = (CONFIGS / "gpus" / f"{gpus}.yaml").read_text(encoding="utf-8")
        assert f"in {len(parts)} parts" in text
        negatives = {rows * 5 * 2 - 2 for rows in map(sum, parts)}
        assert gpus == "1_of_24gb" or eight.data.labeled_per_step != 32 or f"{negatives.pop()} negatives instead of 318" in text


def check_memory(name: str, gpus: str | None) -> None:
    config, limit = config_of(name, gpus=gpus), GPUS[gpus][1]
    needed = sum(estimate_memory(config, plan_of(name, config), ALL[name][0]).values()) / 1e9
    print(f"\n{name}, {gpus or 8} GPUs: {needed:.1f} of {limit} GB")
    assert needed + CONTEXT_GB < limit


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("name", ALL)
def test_all_fit_into_the_gpus_memory(name: str, gpus: str | None) -> None:
    check_memory(name, gpus)


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("kinetics400_10pct", None), ("kinetics400_10pct", "1"), ("kinetics400_10pct", "1_of_24gb"),
        ("ucf101_practical", "1"), ("hmdb51_practical", "4"),
    ],
)  # fmt: skip
def test_a_dry_run_goes_through_and_the_largest_fit_into_the_gpus_memory(
    name: str, gpus: str | None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as the files' headers have it, over other videos, whose fewer classes save some MB, and without downloading
    weights. The others have smaller parts of the same networks (``long`` looks at all)."""
    monkeypatch.setattr("pipeline.ray_cluster.connect.is_reachable", lambda: False)  # whether some Ray runs here is not asked
    h100 = Hardware(gpus=("NVIDIA H100",), gpu_memory=80 * 10**9, bf16=True)
    for room in ("pipeline.hardware", "pipeline.training.gpu_memory"):
        monkeypatch.setattr(f"{room}.read_hardware", lambda: h100)
    files = [word for file in files_of(name, gpus) for word in ("--config", file)]
    data = [f"data.manifest={tiny / 'manifest.parquet'}", "data.labels=null", f"run.storage_path={tmp_path / 'runs'}"]
    random = ["primary.network.weights=null", "auxiliary.network.weights=null"]
    assert run(train.main, [*files, "--dry-run", *data, *random]) == 0
    text, (workers, limit), config = capsys.readouterr().out, GPUS[gpus], config_of(name, gpus=gpus)
    rows = divide_step(plan_of(name, config), config, workers)[0][0]
    labeled = config.data.labeled_per_step
    assert (
        f"a step: {labeled} labeled + {5 * labeled} unlabeled videos; {workers} worker" in text
        and f"computed in parts of {rows}" in text
    )
    together = float(re.findall(r"together +([\d,.]+) MB", text)[0].replace(",", "")) / 1000
    assert 10 < together < limit - CONTEXT_GB
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize("name", ["ucf101_1pct", "hmdb51_40pct", "kinetics400_1pct"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds_on_every_data_set(name: str, method: str) -> None:
    """Settings of one data set differ in numbers of videos and steps alone; above, all methods meet all of them."""
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
    weights = LossWeights(pseudo_label=2.0, contrast=2.0, group_contrast=1.0, alignment=1.0, mix=2.0)
    loss = built(make_views(batch, config, 0, "cpu"), weights)["loss"]
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert [key for key, value in built.named_parameters() if value.requires_grad and value.grad is None] == []
