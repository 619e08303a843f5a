"""TCL (Singh et al., CVPR 2021): one network sees a video at two speeds and is trained to predict the same.

The paper is about one network. Here each student is such a network on its own, and the slow clip is every second frame of its
weak view (the paper's pathways have 8 and 4 segments). The stages of training are starts of terms: ``supervised_steps``, then
both contrasts, then, from ``pseudo_label.start`` on, pseudo-labels. The paper fine-tunes on these without strong views; here
they are FixMatch's (choice).
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.methods.parts.inputs import LossWeights, Setup, Step
from pipeline.methods.parts.losses import compute_contrast_loss, compute_group_contrast_loss
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import compute_label_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Results, collect_results, compute_pseudo_label_losses, sum_terms


class TCL(Method):
    """L = Ls + beta Lic + group_contrast.weight Lgc + gamma Lu for each student."""

    TERMS = ("contrast", "group_contrast", "pseudo_label")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students, setup)
        for name in STUDENTS:
            student = getattr(setup.config, name)
            tubelet, slow = getattr(student.network, "tubelet", 1), -(-student.clip.frames // 2)
            if tubelet > slow:
                raise UserError(
                    f"{name}.network.tubelet={tubelet}: tcl's slow clip has {slow} of {student.clip.frames} frames; set it to "
                    f"{slow} or less, or raise {name}.clip.frames"
                )
        self.labels = PseudoLabels(students, setup, source="self")

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Computes FixMatch's pseudo-label loss, and contrasts each weak view with every second frame of itself, by clips and
        by classes."""
        unlabeled = step.unlabeled
        given = self.labels.assign_labels(step)
        pseudo_label = compute_pseudo_label_losses(step.strong, given)
        knobs, contrast, groups = self.section.contrast, {}, {}
        for name in STUDENTS:
            fast = step.weak[name].logits.float().softmax(dim=1)
            with torch.set_grad_enabled(weights.has_weak_gradient):
                slow = self.students[name](unlabeled.weak[name][:, :, ::2])[0].float().softmax(dim=1)
            contrast[f"contrast_loss/{name}"] = compute_contrast_loss(fast, slow, knobs.temperature, knobs.negatives)
            groups[f"group_contrast_loss/{name}"] = compute_group_contrast_loss(fast, slow, knobs.temperature)
        loss = weights.supervised * sum_terms(step.supervised) + weights.pseudo_label * sum_terms(pseudo_label)
        loss = loss + weights.contrast * sum_terms(contrast) + weights.group_contrast * sum_terms(groups)
        watched = compute_label_monitors(given, self.labels.labelers, unlabeled.hidden_labels)
        return collect_results(loss, step.supervised, pseudo_label, contrast, groups, watched)
