"""TCL (Singh et al., CVPR 2021): one network sees a video fast and slow, and says the same.

It is about one network: here each student is one, for itself; the slow clip is every second frame of its own weak view (the
paper's pathways have 8 and 4 segments). Its stages are starts: ``supervised_steps``, then both contrasts, then, from
``start.pseudo_label`` on, pseudo-labels. The paper fine-tunes on them without strong views; here they are FixMatch's (choice).
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.methods.inputs import STUDENTS, LossWeights, Method, Setup, Views
from pipeline.methods.labels import PseudoLabels
from pipeline.methods.losses import contrast_loss, group_contrast_loss
from pipeline.methods.monitors import student_monitors
from pipeline.methods.parts import pseudo_label_terms, results, supervised_terms, total
from pipeline.methods.passes import pass_views


class TCL(Method):
    """L = Ls + beta Lic + group_contrast_weight Lgc + gamma Lu for each student."""

    TERMS = ("contrast", "group_contrast", "pseudo_label")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)
        for name in STUDENTS:
            student = getattr(setup.config, name)
            tubelet, slow = getattr(student.network, "tubelet", 1), -(-student.clip.frames // 2)
            if tubelet > slow:
                raise UserError(
                    f"{name}.network.tubelet={tubelet}: tcl's slow clip has {slow} of {student.clip.frames} frames; set it to "
                    f"{slow} or less, or raise {name}.clip.frames"
                )
        self.section = setup.method
        self.labels = PseudoLabels(students, setup, source="self")

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and the parts and monitors of metrics.jsonl, without gradient, unweighted."""
        self.labels.follow(self.students)
        labeled, weak, strong = pass_views(self.students, views, weights, self.section.batch_norm)
        supervised = supervised_terms(labeled, views)
        if views.weak is None or views.hidden_labels is None or not weak:
            return results(weights.supervised * total(supervised), supervised)
        labels = self.labels(self.labels.say(weak, views.weak), views)
        pseudo_label, masks = pseudo_label_terms(strong, labels, views.hidden_labels)
        contrast, groups = {}, {}
        for name in STUDENTS:
            fast = weak[name][0].float().softmax(dim=1)
            with torch.set_grad_enabled(weights.weak_gradient):
                slow = self.students[name](views.weak[name][:, :, ::2])[0].float().softmax(dim=1)
            temperature = self.section.contrast_temperature
            contrast[f"contrast_loss/{name}"] = contrast_loss(fast, slow, temperature, self.section.contrast_negatives)
            groups[f"group_contrast_loss/{name}"] = group_contrast_loss(fast, slow, temperature)
        loss = weights.supervised * total(supervised) + weights.pseudo_label * total(pseudo_label)
        loss = loss + weights.contrast * total(contrast) + weights.group_contrast * total(groups)
        watched = student_monitors(weak, views.hidden_labels)
        return results(loss, supervised, pseudo_label, contrast, groups, masks, watched)
