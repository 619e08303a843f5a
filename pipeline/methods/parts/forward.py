"""Passes of views through the students, with care for gradients and for BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from pipeline.methods.parts.inputs import STUDENTS, LossWeights, Output, Outputs, Views


def pass_views(
    students: nn.ModuleDict, views: Views, weights: LossWeights, batch_norm: Literal["separate", "joint"]
) -> tuple[Outputs, Outputs, Outputs]:
    """Outputs of both students for labeled, weak and strong views; nothing for those that no loss that counts uses."""
    kinds = [views.labeled]
    if weights.use_unlabeled and views.unlabeled is not None:
        kinds.append(views.unlabeled.weak)
        if weights.use_strong and views.unlabeled.strong:
            kinds.append(views.unlabeled.strong)
    passes = {"separate": _separate, "joint": _joint}[batch_norm]
    of_students = [passes(students[name], [kind[name] for kind in kinds], weights) for name in STUDENTS]
    of_kinds = [dict(zip(STUDENTS, outputs, strict=True)) for outputs in zip(*of_students, strict=True)]
    labeled, weak, strong = [*of_kinds, {}, {}][:3]
    return labeled, weak, strong


def _joint(student: nn.Module, views: list[torch.Tensor], weights: LossWeights) -> list[Output]:
    logits, features = student(torch.cat(views) if len(views) > 1 else views[0])
    sizes = [len(view) for view in views]
    return [Output(*parts) for parts in zip(logits.split(sizes), features.split(sizes), strict=True)]


def _separate(student: nn.Module, views: list[torch.Tensor], weights: LossWeights) -> list[Output]:
    """A pass each. Weak views need a gradient for what compares features only. Strong views do not look like test clips,
    so they leave BatchNorm's running statistics alone."""
    labeled, *unlabeled = views
    outputs = [Output(*student(labeled))]
    for weak in unlabeled[:1]:
        with torch.set_grad_enabled(weights.weak_gradient):
            outputs.append(Output(*student(weak)))
    for strong in unlabeled[1:]:
        with torch.set_grad_enabled(weights.pseudo_label > 0), frozen_statistics(student):
            outputs.append(Output(*student(strong)))
    return outputs


@contextmanager
def frozen_statistics(student: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by the batch as ever but does not update its running statistics."""
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
