from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from pipeline.config import OptimizerSection, TrainSection
from pipeline.training.optimizer import build_optimizer, clip_gradient, set_learning_rate
from pipeline.training.schedule import compute_lr_factor


def test_warm_up_then_cosine_to_zero() -> None:
    train = TrainSection(steps=110, warmup_steps=10)
    factors = [compute_lr_factor(step, train) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_a_warm_up_longer_than_the_run() -> None:
    assert compute_lr_factor(4, TrainSection(steps=5, warmup_steps=10)) == 0.5


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    student = nn.ModuleDict({"conv": nn.Conv3d(3, 4, 1), "norm": nn.BatchNorm3d(4)})
    student.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 4)))
    decayed, free = build_optimizer(student, OptimizerSection(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 1, 1, 1)]
    assert len(free["params"]) == 4


def test_clipping_reports_the_norm_before() -> None:
    student = nn.Linear(2, 1, bias=False)
    student.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradient(student, None) == 5.0
    assert student.weight.grad.tolist() == [[3.0, 4.0]]
    assert clip_gradient(student, 1.0) == 5.0
    assert student.weight.grad.norm() == pytest.approx(1.0, abs=1e-4)


def test_set_lr_reaches_all_groups() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerSection())
    set_learning_rate(optimizer, 0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
