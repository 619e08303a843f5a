"""The baseline: both students learn from the labeled clips alone, each for itself."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.methods.inputs import STUDENTS, LossWeights, Method, Setup, Views
from pipeline.methods.parts import results, supervised_terms, total


class Supervised(Method):
    """L = Ls_Z + Ls_A."""

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and ``supervised_loss/{student}``, without."""
        labeled = {name: self.students[name](views.labeled[name]) for name in STUDENTS}
        terms = supervised_terms(labeled, views)
        return results(weights.supervised * total(terms), terms)
