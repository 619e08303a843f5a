"""Every knob of a training step, at small size, by what it promises."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import STUDENTS, OptimizerSection, TrainSection, parse_config
from pipeline.errors import UserError
from pipeline.methods import METHODS, LossWeights, Views, make_views
from pipeline.methods.fixmatch import FixMatch
from pipeline.methods.parts.losses import compute_supervised_loss
from pipeline.methods.parts.make_views import draw_mixup_shares, mix_clips
from pipeline.training.checkpoints import checkpoint
from pipeline.training.optimizer import build_optimizer
from pipeline.training.schedule import compute_lr_factor
from pipeline.training.step import take_step
from tests.methods.traces import batch_of, small_config
from tests.training.few_steps import HERE, state_of, steps, weights


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("method", METHODS)
def test_weighted_parts_add_up_to_the_loss(method: str, weight: float) -> None:
    """What the shares in the metrics are made of, for every method, while the supervised term rises to its weight too."""
    section = {"name": method, "supervised": {"weight": weight, "ramp": 2 if weight > 1 else 0}}
    for found in steps(small_config(method=section))[1]:
        parts = [value for name, value in found.items() if name.startswith("weighted/")]
        assert float(torch.stack(parts).sum()) == pytest.approx(float(found["loss"]), rel=1e-5)


class Watching(FixMatch):
    """A method that reports a part which no weight is named after."""

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        return super().forward(views, weights) | {"entropy_loss/primary": torch.ones(())}


def test_parts_that_no_weight_is_named_after_are_no_weighted_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "watching", Watching)
    _, (found,) = steps(small_config(method={"name": "watching"}), 1)
    assert found["entropy_loss/primary"] == 1
    assert {name for name in found if name.startswith("weighted/")} == {"weighted/pseudo_label", "weighted/supervised"}


def test_adamw_moves_by_the_rate_whatever_the_gradient() -> None:
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, OptimizerSection(algorithm="adamw", lr=0.01, weight_decay=0.0))
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 1e-3), torch.full((2,), 1e3)
    optimizer.step()
    assert (before - layer.weight).detach().flatten().tolist() == pytest.approx([0.01] * 6, rel=1e-3)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    decayed, free = build_optimizer(layer, OptimizerSection(algorithm="adamw", weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_adamw_state_survives_a_checkpoint(tmp_path: Path) -> None:
    config = small_config(primary={"network": {"depth": 10, "width": 8, "norm": "group"}, "optimizer": {"algorithm": "adamw"},
                                   "clip": {"frames": 4, "fps": 8, "size": 16}})  # fmt: skip
    state, _ = steps(config, 3)
    checkpoint.save(state, tmp_path)
    other = state_of(config)
    checkpoint.load(other, tmp_path / "checkpoint_000002")
    for one in (state, other):
        one.step = 3
        take_step(one.method, one, batch_of(3), config, HERE)
    assert torch.equal(weights(state), weights(other))


def test_rates_fall_at_milestones() -> None:
    section = TrainSection(steps=100, warmup_steps=10, schedule="step", milestones=(50, 80))
    assert [compute_lr_factor(step, section) for step in (4, 10, 49, 50, 79, 80, 99)] == pytest.approx(
        [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(("method", "passes"), [({}, 3), ({"pseudo_label": {"weight": 0.0}}, 2), ({"name": "supervised"}, 1)])
def test_views_that_no_loss_looks_at_are_not_made_nor_passed(method: dict[str, Any], passes: int) -> None:
    """Labeled, weak and strong ones of ActNetFormer; the contrast alone looks at weak ones; and labels need neither."""
    config = small_config(method=method)
    state = state_of(config)
    seen: list[int] = []
    state.students["primary"].register_forward_pre_hook(lambda module, clips: seen.append(len(clips[0])))
    results = take_step(state.method, state, batch_of(0), config, HERE)
    assert seen == [4, 8, 8][:passes]
    assert ("pseudo_label_loss/primary" in results) == (passes == 3)
    assert ("contrast_loss" in results) == (passes >= 2)
    assert float(results["loss"]) > 0


@pytest.mark.parametrize("train", [{"schedule": "step"}, {"milestones": [5]}, {"schedule": "step", "milestones": [5, 3]}])
def test_milestones_that_make_no_schedule(train: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="milestones"):
        parse_config({"train": train})


def test_smoothed_labels() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    spread = 0.9 * torch.nn.functional.one_hot(labels, 4) + 0.1 / 4
    wanted = -(spread * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(compute_supervised_loss(logits, labels, 0.1)) == pytest.approx(float(wanted), rel=1e-5)
    plain, smoothed = (steps(small_config(method={"supervised": {"label_smoothing": value}}), 1)[1][0] for value in (0.0, 0.1))
    assert float(smoothed["supervised_loss/primary"]) != pytest.approx(float(plain["supervised_loss/primary"]), abs=1e-5)


def test_mixed_clips_and_their_labels() -> None:
    logits, labels, shares = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.25, 0.5])
    said = logits.log_softmax(dim=1)
    wanted = -(said[0, 0] + 0.25 * said[1, 1] + 0.75 * said[1, 0] + 0.5 * said[2, 2] + 0.5 * said[2, 1]) / 3
    assert float(compute_supervised_loss(logits, labels, shares_B=shares)) == pytest.approx(float(wanted), rel=1e-5)

    clips = torch.randn(3, 3, 2, 4, 4)
    mixed = mix_clips(clips, shares)
    assert torch.allclose(mixed[0], clips[0])
    assert torch.allclose(mixed[1], 0.25 * clips[1] + 0.75 * clips[0], atol=1e-6)

    config = small_config(method={"supervised": {"mixup": 0.4}})
    plain, mixing = (make_views(batch_of(0), each, 0, "cpu") for each in (small_config(), config))
    assert plain.mixed_shares is None and mixing.mixed_shares is not None
    rows = batch_of(0).rows.numpy()
    assert torch.equal(mixing.mixed_shares, torch.from_numpy(draw_mixup_shares(0, rows, 0.4)).float())
    for name in STUDENTS:
        assert torch.equal(mixing.labeled[name], mix_clips(plain.labeled[name], mixing.mixed_shares))
        assert plain.unlabeled is not None and mixing.unlabeled is not None
        assert torch.equal(mixing.unlabeled.strong[name], plain.unlabeled.strong[name])
    _, found = steps(config, 2)
    assert torch.isfinite(found[-1]["loss"])


def test_a_step_does_not_depend_on_what_was_drawn_before() -> None:
    config = small_config(auxiliary={"network": {"width": 32, "depth": 2, "heads": 2, "patch": 8, "dropout": 0.5},
                                     "clip": {"frames": 4, "fps": 8, "size": 16}})  # fmt: skip
    one = state_of(config)
    other = replace(one, method=copy.deepcopy(one.method))
    torch.rand(7)
    first = float(take_step(one.method, one, batch_of(0), config, HERE)["loss"])
    torch.rand(3)
    other_students: Any = other.method
    other.students = other_students.students
    assert float(take_step(other.method, other, batch_of(0), config, HERE)["loss"]) == first
