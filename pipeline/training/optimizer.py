"""One optimizer per student."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import OptimizerSection


def build_optimizer(student: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    """Builds SGD or AdamW. Weight decay is for matrices and kernels: not for norms and biases (1-d), tokens, embeddings."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        plain = parameter.ndim < 2 or any(word in name for word in ("embed", "token"))
        (free if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if section.algorithm == "adamw":
        return torch.optim.AdamW(groups, lr=section.lr, betas=(section.momentum, section.second_moment))
    return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def get_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the learning rate that was set last."""
    return float(optimizer.param_groups[0]["lr"])


def clip_gradient(student: nn.Module, limit: float | None) -> torch.Tensor:
    """Clips a student's gradient to the norm ``limit`` (None: not at all), and returns its norm before that."""
    return nn.utils.clip_grad_norm_(student.parameters(), float("inf") if limit is None else limit)
