"""FixMatch (Sohn et al., NeurIPS 2020): a student learns on its strong views what it is sure of on the weak ones.

It is about one network: here each student is one, for itself, so that a run gives FixMatch for both.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from pipeline.methods.inputs import LossWeights, Method, Setup, Views
from pipeline.methods.labels import PseudoLabels, Source
from pipeline.methods.monitors import student_monitors
from pipeline.methods.parts import pseudo_label_terms, results, supervised_terms, total
from pipeline.methods.passes import pass_views


class FixMatch(Method):
    """L = Ls + gamma Lu for each student."""

    TERMS = ("pseudo_label",)
    SOURCE: ClassVar[Source] = "self"

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)
        self.section = setup.method
        self.labels = PseudoLabels(students, setup, self.SOURCE)

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and the parts and monitors of metrics.jsonl, without gradient, unweighted."""
        self.labels.follow(self.students)
        labeled, weak, strong = pass_views(self.students, views, weights, self.section.batch_norm)
        supervised = supervised_terms(labeled, views)
        if views.weak is None or views.hidden_labels is None or not weak:
            return results(weights.supervised * total(supervised), supervised)
        labels = self.labels(self.labels.say(weak, views.weak), views)
        pseudo_label, masks = pseudo_label_terms(strong, labels, views.hidden_labels)
        loss = weights.supervised * total(supervised) + weights.pseudo_label * total(pseudo_label)
        return results(loss, supervised, pseudo_label, masks, student_monitors(weak, views.hidden_labels))
