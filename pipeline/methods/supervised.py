"""The baseline: both students learn from the labeled clips alone, each for itself."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.methods.inputs import STUDENTS, LossWeights, Method, Setup, Views
from pipeline.methods.losses import supervised_loss


class Supervised(Method):
    """L = Ls_Z + Ls_A."""

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and ``supervised_loss/{student}``, without."""
        losses = {
            f"supervised_loss/{name}": supervised_loss(self.students[name](views.labeled[name])[0], views.labels)
            for name in STUDENTS
        }
        loss = weights.supervised * torch.stack(list(losses.values())).sum()
        return {"loss": loss, **{key: part.detach() for key, part in losses.items()}}
