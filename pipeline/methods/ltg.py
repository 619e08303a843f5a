"""LTG (Xiao et al., CVPR 2022): an RGB and a temporal-gradient network share labels, and the first follows the second.

The paper's are two 3-D ResNet-18: set both networks to ``r3d_18`` and ``auxiliary.clip.modality`` to ``temporal_gradient``.
Labels come from the mean of both. What is aligned are the contrast's features (choice: the paper's block features need two
equal networks); set ``contrast_features: projection``, ``contrast_negatives: cross``, ``confidence_threshold: 0.3``.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.methods.features import ContrastFeatures, zero_of
from pipeline.methods.inputs import LossWeights, Method, Setup, Views
from pipeline.methods.labels import PseudoLabels
from pipeline.methods.losses import alignment_loss
from pipeline.methods.monitors import alignment_monitors, student_monitors
from pipeline.methods.parts import contrast_term, pseudo_label_terms, results, supervised_terms, total
from pipeline.methods.passes import pass_views


class LTG(Method):
    """L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lcontrast + alignment_weight (1 - cos(Z, stop-gradient A))."""

    TERMS = ("pseudo_label", "contrast", "alignment")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)
        self.section = setup.method
        self.features = ContrastFeatures(students, setup)
        self.labels = PseudoLabels(students, setup, source="mean")

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and the parts and monitors of metrics.jsonl, without gradient, unweighted."""
        self.labels.follow(self.students)
        labeled, weak, strong = pass_views(self.students, views, weights, self.section.batch_norm)
        supervised = supervised_terms(labeled, views)
        if views.weak is None or views.hidden_labels is None or not weak:
            return results(weights.supervised * total(supervised) + zero_of(self.students), supervised)
        labels = self.labels(self.labels.say(weak, views.weak), views)
        pseudo_label, masks = pseudo_label_terms(strong, labels, views.hidden_labels)
        features = self.features(self.students, weak)
        contrast = contrast_term(features, self.section, len(views.hidden_labels))
        aligned = alignment_loss(features["primary"], features["auxiliary"])
        loss = weights.supervised * total(supervised) + weights.pseudo_label * total(pseudo_label)
        loss = loss + weights.contrast * contrast + weights.alignment * aligned + zero_of(self.students)
        parts = {"contrast_loss": contrast, "alignment_loss": aligned}
        watched = student_monitors(weak, views.hidden_labels) | alignment_monitors(features, len(views.hidden_labels))
        return results(loss, supervised, pseudo_label, parts, masks, watched)
