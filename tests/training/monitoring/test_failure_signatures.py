"""Each signature of failure is provoked in a real training on generated clips, and stays away from a sound one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.clips.batch import Batch
from pipeline.config import STUDENTS, MonitorSection, list_keys
from pipeline.methods import build_method
from pipeline.training.checkpoints import checkpoint
from pipeline.training.model_options import apply_train_options
from pipeline.training.monitoring.failure_signatures import KNOBS, FailureSignature, SignatureMonitor, find_signatures
from pipeline.training.monitoring.metric_line import compute_line
from pipeline.training.optimizer import build_optimizer
from pipeline.training.step import StepContext, take_step
from tests.methods.traces import CLASSES, VIDEOS, batch_of, clips_of, small_config

LIMITS = MonitorSection(patience_steps=8)
HERE = StepContext(0, torch.device("cpu"), 1.0)


def lines_of(steps: int = 16, change: Callable[[Batch], Batch] = lambda batch: batch, **sections: Any) -> list[dict[str, Any]]:
    """The lines of a run, one for every four steps."""
    config = small_config(**{**sections, "train": {"warmup_steps": 0, "steps": 1000, **sections.get("train", {})}})
    torch.manual_seed(0)
    method = apply_train_options(build_method(config, CLASSES, VIDEOS, VIDEOS // 2), config.train)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, {})
    lines = []
    for last in range(4, steps + 1, 4):
        sums: dict[str, torch.Tensor] = {}
        for state.step in range(last - 4, last):
            batch = batch_of(state.step)
            results = take_step(state.method, state, change(batch), config, HERE)
            for name, value in results.items():
                if not name.startswith("scores/"):
                    sums[name] = sums.get(name, torch.zeros(())) + value
        totals = {name: value.flatten().tolist() for name, value in sums.items()}
        lines.append({"step": last, **compute_line(totals, dict.fromkeys(totals, 4))})
    return lines


def test_the_knobs_to_try_exist() -> None:
    known = list_keys()
    for text in KNOBS.values():
        for name in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+", text):
            assert any(key == name or key.endswith(f".{name}") for key in known), name
    assert "method.contrast.weight" in KNOBS["contrast_dominates"]


def _of_one_class(batch: Batch) -> Batch:
    labels = batch.labels.clone()
    labels[:, 0] = 0
    return replace(batch, labels=labels)


def _of_labeled_videos(batch: Batch) -> Batch:
    """Unlabeled slots show videos that other steps show with their labels."""
    videos = batch.videos % (VIDEOS // 2)
    clips = clips_of(videos.flatten()).unflatten(0, videos.shape)
    return replace(batch, videos=videos, labels=videos % CLASSES, primary=clips, auxiliary=clips.clone())


def names(found: list[FailureSignature]) -> set[str]:
    return {finding.name for finding in found}


PROVOKED: dict[str, tuple[set[str], dict[str, Any]]] = {
    "wrong_labels": (
        {"wrong_labels/auxiliary_to_primary", "wrong_labels/primary_to_auxiliary"},
        {"method": {"confidence_threshold": 0.0}},
    ),
    "no_labels": (
        {"no_labels/auxiliary_to_primary", "no_labels/primary_to_auxiliary"}, {"method": {"confidence_threshold": 1.0}}
    ),
    "contrast_dominates": (
        {"contrast_dominates/auxiliary"}, {"steps": 24, "method": {"contrast": {"weight": 200.0}}}
    ),
    "not_aligning": ({"not_aligning"}, {"method": {"contrast": {"weight": 0.001, "features": "projection"}}}),
    "diverged": ({"diverged/primary"}, {"primary": {"network": {"depth": 10, "width": 8, "norm": "group"},
                 "clip": {"frames": 4, "fps": 8, "size": 16}, "optimizer": {"lr": 30.0}}}),
    "one_class": (
        {"one_class/auxiliary_to_primary", "one_class/primary_to_auxiliary"}, {"change": _of_one_class}
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", PROVOKED)
def test_a_training_that_fails_in_this_way_says_so(rule: str) -> None:
    wanted, sections = PROVOKED[rule]
    found = find_signatures(lines_of(**sections), LIMITS, CLASSES)
    assert wanted <= names(found)
    finding = next(finding for finding in found if finding.name in wanted)
    assert finding.until - finding.since >= LIMITS.patience_steps
    assert f"since step {finding.since}" in str(finding) and KNOBS[rule] in str(finding)


def test_every_rule_is_provoked() -> None:
    assert set(PROVOKED) == set(KNOBS)


def test_a_sound_training_shows_none_of_them_at_its_end() -> None:
    """Its unlabeled videos are easy to label, it is slow, and the losses have weights that suit 8 videos (so with 3 seeds)."""
    weights = {"contrast": {"weight": 0.1}, "pseudo_label": {"weight": 0.5}}
    method = {"confidence_threshold": 0.6, "supervised_steps": 90, **weights}
    tree = small_config().model_dump()
    slow = {name: {**tree[name], "optimizer": {"lr": 0.02, "clip_gradient_norm": 1.0}} for name in STUDENTS}
    lines = lines_of(120, _of_labeled_videos, method=method, **slow)
    watch = SignatureMonitor(LIMITS, CLASSES)
    for line in lines:
        watch.update(line)
    assert names(watch.present) == set()


def test_it_is_told_once_and_again_when_it_comes_back() -> None:
    def line(step: int, rate: float) -> dict[str, Any]:
        return {"step": step, "mask_rate/a_to_b": rate}

    watch = SignatureMonitor(MonitorSection(patience_steps=20), 4)
    rates = {10: 0.0, 20: 0.0, 30: 0.0, 40: 0.0, 50: 0.5, 60: 0.0, 70: 0.0, 80: 0.0}
    told = {step: [str(finding.since) for finding in watch.update(line(step, rate))] for step, rate in rates.items()}
    assert {step: since for step, since in told.items() if since} == {30: ["10"], 80: ["60"]}
    found = find_signatures([line(step, rate) for step, rate in rates.items()], MonitorSection(patience_steps=20), 4)
    assert [(finding.since, finding.until) for finding in found] == [(10, 40), (60, 80)]


def test_losses_that_are_no_number_have_diverged() -> None:
    watch = SignatureMonitor(MonitorSection(patience_steps=1), 4)
    watch.update({"step": 1, "supervised_loss/primary": float("nan")})
    assert names(watch.update({"step": 2, "supervised_loss/primary": float("nan")})) == {"diverged/primary"}
