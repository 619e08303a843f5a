"""LTG (Xiao et al., CVPR 2022): an RGB and a temporal-gradient network share labels, and the first is aligned with the second.

The paper's students are two 3-D ResNet-18: set both networks to ``r3d_18`` and ``auxiliary.clip.modality`` to
``temporal_gradient``. Labels come from the mean of both. The contrast's features are what is aligned (choice: the paper's
block features need two equal networks); set ``contrast: {features: projection, negatives: cross}``, ``confidence_threshold:
0.3``.
"""

from __future__ import annotations

from torch import nn

from pipeline.methods.parts.contrast_features import ContrastFeatures
from pipeline.methods.parts.inputs import LossWeights, Setup, Step
from pipeline.methods.parts.losses import compute_alignment_loss
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import compute_alignment_monitors, compute_label_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Results, collect_results, compute_pseudo_label_losses, contrast_students, sum_terms


class LTG(Method):
    """L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lcontrast + alignment.weight (1 - cos(Z, stop-gradient A))."""

    TERMS = ("pseudo_label", "contrast", "alignment")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students, setup)
        self.features = ContrastFeatures(students, setup)
        self.labels = PseudoLabels(students, setup, source="mean")

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Labels both students by the mean of their logits, and contrasts and aligns their weak views."""
        hidden = step.unlabeled.hidden_labels
        given = self.labels.assign_labels(step)
        pseudo_label = compute_pseudo_label_losses(step.strong, given)
        features = self.features(self.students, step.weak)
        contrast = contrast_students(features, self.section.contrast, videos=len(hidden))
        aligned = compute_alignment_loss(features["primary"], features["auxiliary"])  # stop-gradient to the auxiliary's
        loss = weights.supervised * sum_terms(step.supervised) + weights.pseudo_label * sum_terms(pseudo_label)
        loss = loss + weights.contrast * contrast + weights.alignment * aligned
        parts = {"contrast_loss": contrast, "alignment_loss": aligned}
        watched = compute_label_monitors(given, self.labels.labelers, hidden)
        watched |= compute_alignment_monitors(features, len(hidden))
        return collect_results(loss, step.supervised, pseudo_label, parts, watched)
