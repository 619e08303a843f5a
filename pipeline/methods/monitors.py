"""What is watched beside the losses, as scalar tensors without gradient, named as in metrics.jsonl.

Hidden labels [U] are int64, -1 where unknown; they serve these monitors and never a loss.
"""

from __future__ import annotations

import torch

from pipeline.methods.inputs import Outputs
from pipeline.methods.labels import Labels
from pipeline.methods.losses import alignment

Monitors = dict[str, torch.Tensor]
SCORES = "scores"
"""First part of the keys of what is no scalar: softmax [U, K] of each student on the weak views, for the record of scores."""


def label_monitors(labels: Labels, hidden_U: torch.Tensor) -> Monitors:
    """``mask_rate``, the mean weight, and as sums ``kept`` (weights of clips whose hidden label is known) and
    ``kept_correct`` among them, so that accuracy stays exact over steps and workers; ``threshold`` where it moves."""
    known_U = labels.weights * (hidden_U >= 0)
    found = {
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


def alignment_monitors(features: dict[str, torch.Tensor]) -> Monitors:
    """``alignment`` of the students' contrast features: mean cosine of the same and of different videos."""
    same, different = alignment(features["primary"], features["auxiliary"])
    return {"alignment/same": same, "alignment/different": different}
