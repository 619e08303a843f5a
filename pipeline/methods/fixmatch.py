"""FixMatch (Sohn et al., NeurIPS 2020): a student is trained on its strong views with the confident predictions for its weak
views.

The paper is about one network. Here each student is such a network on its own, so that a run gives FixMatch for both.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from pipeline.methods.parts.inputs import LossWeights, Setup, Step
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import compute_label_monitors
from pipeline.methods.parts.pseudo_labels import LabelSource, PseudoLabels
from pipeline.methods.parts.terms import Results, collect_results, compute_pseudo_label_losses, sum_terms


class FixMatch(Method):
    """L = Ls + gamma Lu for each student."""

    TERMS = ("pseudo_label",)
    SOURCE: ClassVar[LabelSource] = "self"

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students, setup)
        self.labels = PseudoLabels(students, setup, self.SOURCE)

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Trains each student's strong views with its confident predictions for the weak views."""
        given = self.labels.assign_labels(step)
        pseudo_label = compute_pseudo_label_losses(step.strong, given)
        loss = weights.supervised * sum_terms(step.supervised) + weights.pseudo_label * sum_terms(pseudo_label)
        watched = compute_label_monitors(given, self.labels.labelers, step.unlabeled.hidden_labels)
        return collect_results(loss, step.supervised, pseudo_label, watched)
