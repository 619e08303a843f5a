"""What is watched beside the losses, as tensors without gradient; what begins with ``kept`` are sums over clips, all else
but the record of scores are means. ``training.monitoring.metric_line`` makes the names of metrics.jsonl of them.

Hidden labels [U] are int64, -1 where unknown; they serve these monitors and never a loss.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from pipeline.methods.inputs import Outputs
from pipeline.methods.labels import Labels
from pipeline.methods.losses import alignment

Monitors = dict[str, torch.Tensor]
TENTHS = 10
"""Bins of the histogram of confidence."""
SCORES = "scores"
"""First part of the keys of what is no scalar: softmax [U, K] of each student on the weak views, for the record of scores."""


def label_monitors(labels: Labels, hidden_U: torch.Tensor) -> Monitors:
    """``mask_rate``, the mean weight; as sums ``kept`` (weights of clips whose hidden label is known) and ``kept_correct``
    among them, so that accuracy stays exact over steps and workers, and ``kept_classes`` [K], all weights by class;
    ``confidence`` [10], the share of clips whose largest probability lies in each tenth; ``threshold`` where it moves."""
    known_U = labels.weights * (hidden_U >= 0)
    confidence_U, num_classes = labels.scores.amax(dim=1), labels.scores.shape[1]
    tenths_U = (confidence_U * TENTHS).long().clamp(0, TENTHS - 1)
    found = {
        f"confidence/{labels.direction}": F.one_hot(tenths_U, TENTHS).float().mean(dim=0),
        f"kept_classes/{labels.direction}": (F.one_hot(labels.classes, num_classes) * labels.weights[:, None]).sum(dim=0),
        f"mask_rate/{labels.direction}": labels.weights.mean(),
        f"kept/{labels.direction}": known_U.sum(),
        f"kept_correct/{labels.direction}": (known_U * (labels.classes == hidden_U)).sum(),
    }
    if labels.thresholds is None:
        return found
    return {**found, f"threshold/{labels.direction}": labels.thresholds.mean()}


def student_monitors(weak: Outputs, hidden_U: torch.Tensor) -> Monitors:
    """Of the weak views: ``weak_accuracy`` of each student (nan when no hidden label is known), ``agreement`` of their
    classes, and each student's ``scores`` [U, K], which the training loop takes out before anything is summed."""
    scores = {f"{SCORES}/{name}": said[0].detach().float().softmax(dim=1) for name, said in weak.items()}
    classes = {name: said[0].detach().argmax(dim=1) for name, said in weak.items()}
    known = (hidden_U >= 0).float().sum()
    found = {f"weak_accuracy/{name}": (classes_U == hidden_U).float().sum() / known for name, classes_U in classes.items()}
    return {**found, **scores, "agreement": (classes["primary"] == classes["auxiliary"]).float().mean()}


def alignment_monitors(features: dict[str, torch.Tensor], videos: int) -> Monitors:
    """``alignment`` of the students' contrast features [videos * moments, D]: mean cosine of the same and of different ones."""
    one, other = features["primary"], features["auxiliary"]
    same, different = alignment(one, other, moments=len(one) // videos)
    return {"alignment/same": same, "alignment/different": different}


def gradient_monitors(labeled: Outputs, weak: Outputs, strong: Outputs, features: bool) -> Monitors:
    """``output_gradient/{term}/{student}``: norms of the loss's gradient at what each student says of labeled, weak and strong
    views, which is where the supervised, contrast and pseudo-label terms reach it: the weight of each term in what is learned.

    At the logits, or at the ``features`` that these are made of where the contrast compares features. Filled in while the
    backward pass runs, at no cost but the norms: read them after it. 0 where a term has no gradient.
    """
    cells: Monitors = {}
    for term, outputs in (("supervised", labeled), ("contrast", weak), ("pseudo_label", strong)):
        for student, said in outputs.items():
            output, cell = said[int(features)], torch.zeros((), device=said[0].device)
            if output.requires_grad:
                output.register_hook(partial(_note_norm, cell))
            cells[f"output_gradient/{term}/{student}"] = cell
    return cells


def _note_norm(cell: torch.Tensor, gradient: torch.Tensor) -> None:
    cell.copy_(gradient.detach().float().norm())
