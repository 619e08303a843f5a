"""What every method's forward is put together from: the supervised, pseudo-label and contrast terms."""

from __future__ import annotations

import torch

from pipeline.config import MethodSection
from pipeline.methods import losses
from pipeline.methods.inputs import STUDENTS, Outputs, Views
from pipeline.methods.labels import Labels
from pipeline.methods.monitors import Monitors, label_monitors


def supervised_terms(labeled: Outputs, views: Views) -> Monitors:
    """``supervised_loss/{student}`` with gradient."""
    how = (views.labels, views.label_smoothing, views.mixed_shares)
    return {f"supervised_loss/{name}": losses.supervised_loss(labeled[name][0], *how) for name in STUDENTS}


def pseudo_label_terms(strong: Outputs, labels: dict[str, Labels], hidden_U: torch.Tensor) -> tuple[Monitors, Monitors]:
    """``pseudo_label_loss/{learner}`` with gradient into the learner only, unless there are no strong views; and what is
    watched of the labels."""
    terms: Monitors = {}
    watched: Monitors = {}
    for learner, found in labels.items():
        if strong:
            terms[f"pseudo_label_loss/{learner}"] = losses.pseudo_label_loss(strong[learner][0], found.targets, found.weights)
        watched |= label_monitors(found, hidden_U)
    return terms, watched


def contrast_term(features: dict[str, torch.Tensor], section: MethodSection, videos: int) -> torch.Tensor:
    """Contrast between both students' features [videos * moments, D], as the configuration wants it."""
    one, other = features["primary"], features["auxiliary"]
    return losses.contrast_loss(
        one, other, section.contrast_temperature, section.contrast_negatives, moments=len(one) // videos
    )  # fmt: skip


def total(terms: Monitors) -> torch.Tensor:
    """Sum of terms; 0 if there are none."""
    return torch.stack(list(terms.values())).sum() if terms else torch.zeros(())


def results(loss: torch.Tensor, *parts: Monitors) -> Monitors:
    """``loss`` with gradient, all else without: what a method returns."""
    return {"loss": loss, **{key: value.detach() for part in parts for key, value in part.items()}}
