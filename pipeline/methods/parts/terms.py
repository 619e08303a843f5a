"""The parts of a method's loss: supervised, pseudo-label and contrast terms, their total, and the results of a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.config import ContrastSection
from pipeline.methods.parts import losses
from pipeline.methods.parts.inputs import Outputs, Views
from pipeline.methods.parts.pseudo_labels import PseudoLabel

Losses = dict[str, torch.Tensor]
"""Scalars with gradient, named ``{term}_loss/{student}``, or ``{term}_loss`` if both students share one."""
Results = dict[str, torch.Tensor]
"""What a method returns: ``loss`` with gradient, and everything else without."""


def compute_supervised_losses(labeled: Outputs, views: Views, smoothing: float = 0.0) -> Losses:
    """Computes Ls: ``supervised_loss/{student}``, the cross-entropy of the labeled clips."""
    how = (views.labels, smoothing, views.mixed_shares)
    return {f"supervised_loss/{name}": losses.compute_supervised_loss(output.logits, *how) for name, output in labeled.items()}


def compute_pseudo_label_losses(strong: Outputs, labels: Mapping[str, PseudoLabel]) -> Losses:
    """Computes Lu: ``pseudo_label_loss/{learner}``, the cross-entropy of each learner's strong views with its ``labels``.

    It is divided by the number of all clips, and has a gradient into the learner only. It is empty without strong views.
    """
    return {
        f"pseudo_label_loss/{learner}": losses.compute_pseudo_label_loss(strong[learner].logits, label.targets, label.weights)
        for learner, label in labels.items()
        if learner in strong
    }


def contrast_students(features: Mapping[str, torch.Tensor], section: ContrastSection, videos: int) -> torch.Tensor:
    """Computes Lca, NT-Xent between both students' features [videos * moments, D], with the settings of ``section``.

    The loss on tensors is ``losses.contrast_loss``.
    """
    primary, auxiliary = features["primary"], features["auxiliary"]
    return losses.compute_contrast_loss(
        primary, auxiliary, section.temperature, section.negatives, moments=len(primary) // videos
    )


def sum_terms(terms: Losses) -> torch.Tensor:
    """Sums the terms of one kind; 0 if there are none. Names with two slashes are left out: they are parts of a mean that is
    there, too."""
    counted = [value for name, value in terms.items() if name.count("/") < 2]
    return torch.stack(counted).sum() if counted else torch.zeros(())


def collect_results(loss: torch.Tensor, *parts: Mapping[str, torch.Tensor]) -> Results:
    """Returns what a method returns: ``loss`` with gradient, and all ``parts`` without."""
    return {"loss": loss, **{key: value.detach() for part in parts for key, value in part.items()}}
