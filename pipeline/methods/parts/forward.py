"""Passes views through the students, with or without gradients and updates of BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from pipeline.config import STUDENTS
from pipeline.methods.parts.inputs import LossWeights, Output, Outputs, Views


def pass_views(
    students: nn.ModuleDict, views: Views, weights: LossWeights, batch_norm: Literal["separate", "joint"]
) -> tuple[Outputs, Outputs, Outputs]:
    """Returns the outputs of both students for labeled, weak and strong views.

    Views that no loss with a weight uses are not passed, and their outputs are empty.
    """
    kinds = [views.labeled]
    if weights.has_unlabeled and views.unlabeled is not None:
        kinds.append(views.unlabeled.weak)
        if weights.has_strong and views.unlabeled.strong:
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
    """Passes each kind of views separately.

    Weak views need a gradient only for losses that compare features or outputs of weak views. Strong views do not look like
    test clips, so they do not update BatchNorm's running statistics.
    """
    labeled, *unlabeled = views
    outputs = [Output(*student(labeled))]
    for weak in unlabeled[:1]:
        with torch.set_grad_enabled(weights.has_weak_gradient):
            outputs.append(Output(*student(weak)))
    for strong in unlabeled[1:]:
        with torch.set_grad_enabled(weights.pseudo_label > 0 or weights.file_label > 0), freeze_statistics(student):
            outputs.append(Output(*student(strong)))
    return outputs


@contextmanager
def freeze_statistics(student: nn.Module) -> Iterator[None]:
    """Lets BatchNorm normalize by the batch, as always in training, without updating its running statistics."""
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
