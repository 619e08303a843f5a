"""Quantities that are monitored beside the losses, as tensors without gradient.

Those whose names begin with ``kept`` are sums over clips; all others but the saved scores are means.
``training.monitoring.metric_line`` turns them into the names of metrics.jsonl. Hidden labels [U] are int64, -1 if unknown, and
``OTHER_CLASS`` of a video that shows none of the classes; they serve these monitors and never a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F

from pipeline.manifest.schema import OTHER_CLASS
from pipeline.methods.parts.inputs import Outputs
from pipeline.methods.parts.losses import compute_alignment
from pipeline.methods.parts.pseudo_labels import PseudoLabel

Monitors = dict[str, torch.Tensor]
TENTHS = 10
"""The number of bins of the histogram of confidence."""
SCORES = "scores"
"""The first part of the keys of the saved scores, which are not scalars: each student's softmax [U, K] on the weak views, and
the probabilities of a file of labels, 0 where it says nothing of a video."""


def compute_label_monitors(labels: Mapping[str, PseudoLabel], labelers: Mapping[str, str], hidden_U: torch.Tensor) -> Monitors:
    """Computes the monitors of the ``labels`` that each learner is given; ``labelers`` names the labeler by learner."""
    monitors: Monitors = {}
    for learner, label in labels.items():
        monitors |= compute_direction_monitors(f"{labelers[learner]}_to_{learner}", label, hidden_U)
    return monitors


def compute_direction_monitors(direction: str, label: PseudoLabel, hidden_U: torch.Tensor) -> Monitors:
    """Computes the monitors of the labels that one labeler gives to one learner.

    ``mask_rate`` is the mean weight. ``kept`` is the sum of the weights of clips whose hidden label is a class,
    ``kept_correct`` the sum of those whose label is right, and ``kept_other`` that of clips that show none of the classes: as
    sums, so that accuracy stays exact over steps and workers, where the mean of quotients would not. ``kept_classes`` [K] are
    all weights by class, ``confidence`` [10] is the share of clips whose largest probability lies in each tenth, and
    ``threshold`` is there if it moves.
    """
    known_U = label.weights * (hidden_U >= 0)
    confidence_U, num_classes = label.scores.amax(dim=1), label.scores.shape[1]
    tenths_U = (confidence_U * TENTHS).long().clamp(0, TENTHS - 1)
    monitors = {
        f"confidence/{direction}": F.one_hot(tenths_U, TENTHS).float().mean(dim=0),
        f"kept_classes/{direction}": (F.one_hot(label.classes, num_classes) * label.weights[:, None]).sum(dim=0),
        f"mask_rate/{direction}": label.weights.mean(),
        f"kept/{direction}": known_U.sum(),
        f"kept_correct/{direction}": (known_U * (label.classes == hidden_U)).sum(),
        f"kept_other/{direction}": (label.weights * (hidden_U == OTHER_CLASS)).sum(),
    }
    if label.thresholds is None:
        return monitors
    return {**monitors, f"threshold/{direction}": label.thresholds.mean()}


def compute_student_monitors(weak: Outputs, hidden_U: torch.Tensor) -> Monitors:
    """Computes the monitors of the students' predictions for weak views.

    ``weak_accuracy`` is that of each student (nan if no hidden label is known), ``agreement`` that of their classes, and
    ``scores`` [U, K] are each student's, which the training loop removes before anything is summed.
    """
    scores = {f"{SCORES}/{name}": output.logits.detach().float().softmax(dim=1) for name, output in weak.items()}
    classes = {name: output.logits.detach().argmax(dim=1) for name, output in weak.items()}
    known = (hidden_U >= 0).float().sum()
    accuracies = {f"weak_accuracy/{name}": (classes_U == hidden_U).float().sum() / known for name, classes_U in classes.items()}
    return {**accuracies, **scores, "agreement": (classes["primary"] == classes["auxiliary"]).float().mean()}


def compute_alignment_monitors(features: dict[str, torch.Tensor], videos: int) -> Monitors:
    """Computes the mean cosine of the students' contrast features [videos * moments, D], for the same and for different
    videos."""
    primary, auxiliary = features["primary"], features["auxiliary"]
    same, different = compute_alignment(primary, auxiliary, moments=len(primary) // videos)
    return {"alignment/same": same, "alignment/different": different}


def compute_gradient_monitors(labeled: Outputs, weak: Outputs, strong: Outputs, features: bool) -> Monitors:
    """Returns ``output_gradient/{term}/{student}``: norms of the loss's gradient at each student's outputs.

    They are taken at the outputs for labeled, weak and strong views, where the supervised, contrast and pseudo-label terms
    enter: at the logits, or at the ``features`` if the contrast compares these. The tensors are filled in while the backward
    pass runs, at no cost but the norms, so read them after it. They are 0 for a term without gradient.
    """
    cells: Monitors = {}
    for term, outputs in (("supervised", labeled), ("contrast", weak), ("pseudo_label", strong)):
        for student, output in outputs.items():
            tensor, cell = output.features if features else output.logits, torch.zeros((), device=output.logits.device)
            if tensor.requires_grad:
                tensor.register_hook(partial(_store_norm, cell))
            cells[f"output_gradient/{term}/{student}"] = cell
    return cells


def _store_norm(cell: torch.Tensor, gradient: torch.Tensor) -> None:
    cell.copy_(gradient.detach().float().norm())
