"""ActNetFormer (arXiv 2404.06243): each student learns from the other's confident labels, and both agree on a video.

The data's way is the paper's architecture figure: weak view -> labels, without gradient -> the OTHER student's strong view;
a contrastive loss between both students' weak views, with gradient into both. No teacher, no labels for oneself.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.methods.parts.contrast_features import ContrastFeatures
from pipeline.methods.parts.inputs import LossWeights, Setup, Step
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import compute_alignment_monitors, compute_label_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Results, collect_results, compute_pseudo_label_losses, contrast_students, sum_terms


class ActNetFormer(Method):
    """L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lca, with Z the primary student and A the auxiliary one."""

    TERMS = ("pseudo_label", "contrast")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students, setup)
        self.features = ContrastFeatures(students, setup)
        self.labels = PseudoLabels(students, setup, source="other")

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Follows the paper's figure, arrow by arrow. ``step`` holds both students' outputs for all views, and Ls."""
        unlabeled, hidden = step.unlabeled, step.unlabeled.hidden_labels

        # What each student predicts of its weak view: softmax, behind a stop-gradient.
        with torch.no_grad():
            probabilities = self.labels.predict_probabilities(step.weak, unlabeled.weak)
            # The threshold: the most probable class is a label, which counts where its probability is at least tau.
            pseudo_labels = self.labels.apply_thresholds(probabilities, unlabeled.videos, step.true_labels)

        # The exchange: the primary learns the auxiliary's labels, and the auxiliary the primary's.
        exchange = self.labels.labelers  # {"primary": "auxiliary", "auxiliary": "primary"}, if the knobs are the paper's
        given = {learner: pseudo_labels[labeler] for learner, labeler in exchange.items()}

        # Lu_Z and Lu_A: each student's strong view learns the label that it was given.
        pseudo_label = compute_pseudo_label_losses(step.strong, given)

        # Lca: both students' weak views of one video attract, those of different videos repel; no stop-gradient.
        features = self.features(self.students, step.weak)
        contrast = contrast_students(features, self.section.contrast, videos=len(hidden))

        loss = weights.supervised * sum_terms(step.supervised)
        loss = loss + weights.pseudo_label * sum_terms(pseudo_label) + weights.contrast * contrast

        watched = compute_label_monitors(given, exchange, hidden) | compute_alignment_monitors(features, len(hidden))
        watched |= self.features.monitor_gradients(step.labeled, step.weak, step.strong)
        return collect_results(loss, step.supervised, pseudo_label, {"contrast_loss": contrast}, watched)
