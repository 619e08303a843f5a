"""What is watched beside the losses, as tensors without gradient; what begins with ``kept`` are sums over clips, all else
but the record of scores are means. ``training.monitoring.metric_line`` makes the names of metrics.jsonl of them.

Hidden labels [U] are int64, -1 where unknown; they serve these monitors and never a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F

from pipeline.methods.parts.inputs import Outputs
from pipeline.methods.parts.losses import alignment
from pipeline.methods.parts.pseudo_labels import PseudoLabel

Monitors = dict[str, torch.Tensor]
TENTHS = 10
"""Bins of the histogram of confidence."""
SCORES = "scores"
"""First part of the keys of what is no scalar: softmax [U, K] of each student on the weak views, for the record of scores."""


def label_monitors(labels: Mapping[str, PseudoLabel], labelers: Mapping[str, str], hidden_U: torch.Tensor) -> Monitors:
    """``direction_monitors`` of the ``labels`` that each learner is given, whose ``labelers`` are named by learner."""
    found: Monitors = {}
    for learner, label in labels.items():
        found |= direction_monitors(f"{labelers[learner]}_to_{learner}", label, hidden_U)
    return found


def direction_monitors(direction: str, label: PseudoLabel, hidden_U: torch.Tensor) -> Monitors:
    """Of the labels from one labeler to one learner: ``mask_rate``, the mean weight; as sums ``kept`` (weights of clips whose
    hidden label is known) and ``kept_correct`` among them, so that accuracy stays exact over steps and workers, where the mean
    of quotients would not, and ``kept_classes`` [K], all weights by class; ``confidence`` [10], the share of clips whose
    largest probability lies in each tenth; ``threshold`` where it moves."""
    known_U = label.weights * (hidden_U >= 0)
    confidence_U, num_classes = label.scores.amax(dim=1), label.scores.shape[1]
    tenths_U = (confidence_U * TENTHS).long().clamp(0, TENTHS - 1)
    found = {
        f"confidence/{direction}": F.one_hot(tenths_U, TENTHS).float().mean(dim=0),
        f"kept_classes/{direction}": (F.one_hot(label.classes, num_classes) * label.weights[:, None]).sum(dim=0),
        f"mask_rate/{direction}": label.weights.mean(),
        f"kept/{direction}": known_U.sum(),
        f"kept_correct/{direction}": (known_U * (label.classes == hidden_U)).sum(),
    }
    if label.thresholds is None:
        return found
    return {**found, f"threshold/{direction}": label.thresholds.mean()}


def student_monitors(weak: Outputs, hidden_U: torch.Tensor) -> Monitors:
    """Of the weak views: ``weak_accuracy`` of each student (nan when no hidden label is known), ``agreement`` of their
    classes, and each student's ``scores`` [U, K], which the training loop takes out before anything is summed."""
    scores = {f"{SCORES}/{name}": output.logits.detach().float().softmax(dim=1) for name, output in weak.items()}
    classes = {name: output.logits.detach().argmax(dim=1) for name, output in weak.items()}
    known = (hidden_U >= 0).float().sum()
    found = {f"weak_accuracy/{name}": (classes_U == hidden_U).float().sum() / known for name, classes_U in classes.items()}
    return {**found, **scores, "agreement": (classes["primary"] == classes["auxiliary"]).float().mean()}


def alignment_monitors(features: dict[str, torch.Tensor], videos: int) -> Monitors:
    """``alignment`` of the students' contrast features [videos * moments, D]: mean cosine of the same and of different ones."""
    one, other = features["primary"], features["auxiliary"]
    same, different = alignment(one, other, moments=len(one) // videos)
    return {"alignment/same": same, "alignment/different": different}


def gradient_monitors(labeled: Outputs, weak: Outputs, strong: Outputs, features: bool) -> Monitors:
    """``output_gradient/{term}/{student}``: norms of the loss's gradient at each student's outputs for labeled, weak and
    strong views, where the supervised, contrast and pseudo-label terms enter it: the weight of each term in what is learned.

    At the logits, or at the ``features`` that these are made of where the contrast compares features. Filled in while the
    backward pass runs, at no cost but the norms: read them after it. 0 where a term has no gradient.
    """
    cells: Monitors = {}
    for term, outputs in (("supervised", labeled), ("contrast", weak), ("pseudo_label", strong)):
        for student, output in outputs.items():
            tensor, cell = output.features if features else output.logits, torch.zeros((), device=output.logits.device)
            if tensor.requires_grad:
                tensor.register_hook(partial(_note_norm, cell))
            cells[f"output_gradient/{term}/{student}"] = cell
    return cells


def _note_norm(cell: torch.Tensor, gradient: torch.Tensor) -> None:
    cell.copy_(gradient.detach().float().norm())
