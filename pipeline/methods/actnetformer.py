"""ActNetFormer (arXiv 2404.06243): each student learns from the other's confident labels, and both agree on a video.

The data's way is the paper's architecture figure: weak view -> labels, without gradient -> the OTHER student's strong view;
a contrastive loss between both students' weak views, with gradient into both. No teacher, no labels for oneself.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.methods.features import ContrastFeatures, zero_of
from pipeline.methods.inputs import LossWeights, Method, Setup, Views
from pipeline.methods.labels import PseudoLabels
from pipeline.methods.monitors import alignment_monitors, student_monitors
from pipeline.methods.parts import contrast_term, pseudo_label_terms, results, supervised_terms, total
from pipeline.methods.passes import pass_views


class ActNetFormer(Method):
    """L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lca."""

    TERMS = ("pseudo_label", "contrast")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)
        self.section = setup.method
        self.features = ContrastFeatures(students, setup)
        self.labels = PseudoLabels(students, setup, source="other")

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and the parts and monitors of metrics.jsonl, without gradient, unweighted.

        The accuracy of kept labels comes as two counts: ``kept_correct/A_to_B`` of ``kept/A_to_B``, the kept clips whose
        hidden label is known; their sums over steps and workers keep the quotient exact, where means would not.
        Steps whose weights are all 0 skip the unlabeled passes; every parameter still gets a gradient, from the labels.
        """
        self.labels.follow(self.students)
        labeled, weak, strong = pass_views(self.students, views, weights, self.section.batch_norm)
        supervised = supervised_terms(labeled, views)
        if views.weak is None or views.hidden_labels is None or not weak:
            return results(weights.supervised * total(supervised) + zero_of(self.students), supervised)
        labels = self.labels(self.labels.say(weak, views.weak), views)
        pseudo_label, masks = pseudo_label_terms(strong, labels, views.hidden_labels)
        features = self.features(self.students, weak)
        contrast = contrast_term(features, self.section, len(views.hidden_labels))
        loss = weights.supervised * total(supervised) + weights.pseudo_label * total(pseudo_label) + weights.contrast * contrast
        watched = student_monitors(weak, views.hidden_labels) | alignment_monitors(features, len(views.hidden_labels))
        watched |= self.features.gradients(labeled, weak, strong)
        return results(loss + zero_of(self.students), supervised, pseudo_label, masks, {"contrast_loss": contrast}, watched)
