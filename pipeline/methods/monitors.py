"""What is watched beside the losses, as scalar tensors without gradient, named as in metrics.jsonl.

Hidden labels [U] are int64, -1 where unknown; they serve these monitors and never a loss.
"""

from __future__ import annotations

import torch

from pipeline.methods.losses import alignment

Monitors = dict[str, torch.Tensor]


def mask_monitors(direction: str, labels_U: torch.Tensor, keep_U: torch.Tensor, hidden_U: torch.Tensor) -> Monitors:
    """``mask_rate``, and as counts ``kept`` (clips kept whose hidden label is known) and ``kept_correct`` among them."""
    known_U = keep_U & (hidden_U >= 0)
    return {
        f"mask_rate/{direction}": keep_U.float().mean(),
        f"kept/{direction}": known_U.float().sum(),
        f"kept_correct/{direction}": (known_U & (labels_U == hidden_U)).float().sum(),
    }


def student_monitors(
    weak_logits: dict[str, torch.Tensor], features: dict[str, torch.Tensor], hidden_U: torch.Tensor
) -> Monitors:
    """Of the weak views: ``weak_accuracy`` of each student (nan when no hidden label is known), ``agreement`` of their
    classes, and ``alignment`` of their contrast features."""
    classes = {name: logits_UK.detach().argmax(dim=1) for name, logits_UK in weak_logits.items()}
    known = (hidden_U >= 0).float().sum()
    found = {f"weak_accuracy/{name}": (classes_U == hidden_U).float().sum() / known for name, classes_U in classes.items()}
    same, different = alignment(features["primary"], features["auxiliary"])
    agreement = (classes["primary"] == classes["auxiliary"]).float().mean()
    return {**found, "agreement": agreement, "alignment/same": same, "alignment/different": different}
