"""ActNetFormer (arXiv 2404.06243): each student learns from the other's confident labels, and both agree on a video.

The data's way is the paper's architecture figure: weak view -> labels, without gradient -> the OTHER student's strong view;
a contrastive loss between both students' weak views, with gradient into both. No teacher, no labels for oneself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.config import MethodSection
from pipeline.methods import losses
from pipeline.methods.inputs import STUDENTS, LossWeights, Views
from pipeline.methods.monitors import Monitors, mask_monitors, student_monitors

Outputs = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Logits [N, K] and features [N, D] by student."""
DIRECTIONS = (("primary", "auxiliary"), ("auxiliary", "primary"))
"""(who labels, who learns)."""


class ActNetFormer(nn.Module):
    """L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lca."""

    def __init__(self, students: nn.ModuleDict, section: MethodSection) -> None:
        super().__init__()
        self.students = students
        self.section = section

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and the parts and monitors of metrics.jsonl, without gradient, unweighted.

        The accuracy of kept labels comes as two counts: ``kept_correct/A_to_B`` of ``kept/A_to_B``, the kept clips whose
        hidden label is known; their sums over steps and workers keep the quotient exact, where means would not.
        Steps whose weights are both 0 skip the unlabeled passes; every parameter still gets a gradient, from the labels.
        """
        labeled, weak, strong = self._passes(views, weights)
        supervised = {name: losses.supervised_loss(labeled[name][0], views.labels) for name in STUDENTS}
        loss = supervised["primary"] + supervised["auxiliary"]
        parts = {f"supervised_loss/{name}": part for name, part in supervised.items()}
        if weak and strong and views.hidden_labels is not None:
            pseudo_label, masks = self._pseudo_label_losses(weak, strong, views.hidden_labels)
            features = self._contrast_features(weak)
            contrast = losses.contrast_loss(features["primary"], features["auxiliary"], self.section.contrast_temperature)
            loss = loss + weights.pseudo_label * torch.stack([*pseudo_label.values()]).sum() + weights.contrast * contrast
            weak_logits = {name: logits for name, (logits, _) in weak.items()}
            parts |= pseudo_label | masks | {"contrast_loss": contrast}
            parts |= student_monitors(weak_logits, features, views.hidden_labels)
        return {"loss": loss, **{key: part.detach() for key, part in parts.items()}}

    def _pseudo_label_losses(self, weak: Outputs, strong: Outputs, hidden_U: torch.Tensor) -> tuple[Monitors, Monitors]:
        found: Monitors = {}
        masks: Monitors = {}
        for teacher, learner in DIRECTIONS:
            labels, keep = losses.pseudo_labels(weak[teacher][0], self.section.confidence_threshold)
            found[f"pseudo_label_loss/{learner}"] = losses.pseudo_label_loss(strong[learner][0], labels, keep)
            masks |= mask_monitors(f"{teacher}_to_{learner}", labels, keep, hidden_U)
        return found, masks

    def _contrast_features(self, weak: Outputs) -> dict[str, torch.Tensor]:
        if self.section.contrast_features == "embeddings":
            return {name: features for name, (_, features) in weak.items()}
        return {name: logits.float().softmax(dim=1) for name, (logits, _) in weak.items()}

    def _passes(self, views: Views, weights: LossWeights) -> tuple[Outputs, Outputs, Outputs]:
        """What both students say to labeled, weak and strong views; nothing to the last two when they do not count."""
        if not weights.use_unlabeled or views.weak is None or views.strong is None:
            return {name: self.students[name](views.labeled[name]) for name in STUDENTS}, {}, {}
        passes = {"separate": _separate, "joint": _joint}[self.section.batch_norm]
        kinds = (views.labeled, views.weak, views.strong)
        triples = [passes(self.students[name], [kind[name] for kind in kinds], weights) for name in STUDENTS]
        labeled, weak, strong = (dict(zip(STUDENTS, outputs, strict=True)) for outputs in zip(*triples, strict=True))
        return labeled, weak, strong


def _joint(student: nn.Module, views: list[torch.Tensor], weights: LossWeights) -> list[tuple[torch.Tensor, torch.Tensor]]:
    logits, features = student(torch.cat(views))
    sizes = [len(view) for view in views]
    return list(zip(logits.split(sizes), features.split(sizes), strict=True))


def _separate(student: nn.Module, views: list[torch.Tensor], weights: LossWeights) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three passes. Weak views need a gradient for the contrast only. Strong views do not look like test clips, so they
    leave BatchNorm's running statistics alone."""
    labeled, weak, strong = views
    outputs = [student(labeled)]
    with torch.set_grad_enabled(weights.contrast > 0):
        outputs.append(student(weak))
    with torch.set_grad_enabled(weights.pseudo_label > 0), _frozen_statistics(student):
        outputs.append(student(strong))
    return outputs


@contextmanager
def _frozen_statistics(student: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by the batch as ever but does not update its running statistics."""
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
