"""Three steps of each algorithm, against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import PrimarySection
from pipeline.training.optimizer import build_optimizer

GRADIENTS = [torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]]), torch.tensor([[-1.0, 0.25]])]
START = torch.tensor([[0.3, -0.7]])


def take_steps(algorithm: str, optimizer: dict[str, Any]) -> torch.Tensor:
    student = nn.Linear(2, 1, bias=False)
    knobs = {"algorithm": algorithm, "lr": 0.1, "weight_decay": 0.0, **optimizer}
    built = build_optimizer(student, PrimarySection.model_validate({"optimizer": knobs}).optimizer)
    student.weight.data.copy_(START)
    for gradient in GRADIENTS:
        student.weight.grad = gradient.clone()
        built.step()
    return student.weight.detach()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.6, False), (0.6, True)])
def test_sgd(momentum: float, nesterov: bool) -> None:
    weight, velocity = START.clone(), torch.zeros(1, 2)
    for gradient in GRADIENTS:
        velocity = momentum * velocity + gradient
        weight = weight - 0.1 * (gradient + momentum * velocity if nesterov else velocity)
    found = take_steps(algorithm="sgd", optimizer={"momentum": momentum, "nesterov": nesterov})
    assert torch.allclose(found, weight, atol=1e-6)


@pytest.mark.parametrize(("momentum", "second_moment"), [(0.9, 0.999), (0.5, 0.95)])
def test_adamw(momentum: float, second_moment: float) -> None:
    weight, first, second = START.clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step, gradient in enumerate(GRADIENTS, start=1):
        first = momentum * first + (1 - momentum) * gradient
        second = second_moment * second + (1 - second_moment) * gradient**2
        scaled = first / (1 - momentum**step) / ((second / (1 - second_moment**step)).sqrt() + 1e-8)
        weight = weight - 0.1 * scaled
    found = take_steps(algorithm="adamw", optimizer={"momentum": momentum, "second_moment": second_moment})
    assert torch.allclose(found, weight, atol=1e-6)
