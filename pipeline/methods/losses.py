"""The loss terms and monitors, as pure functions on one worker's tensors.

Shape letters beyond batch.py's: U unlabeled videos of one worker, G unlabeled videos of all workers together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


def supervised_loss(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Ls: mean cross-entropy of the labeled clips."""
    return F.cross_entropy(logits_BK.float(), labels_B)


def pseudo_labels(weak_logits_UK: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What a student's weak views say, without gradient: labels [U] int64, and keep [U] bool where softmax >= threshold."""
    confidence_U, labels_U = weak_logits_UK.detach().float().softmax(dim=1).max(dim=1)
    return labels_U, confidence_U >= threshold


def pseudo_label_loss(strong_logits_UK: torch.Tensor, labels_U: torch.Tensor, keep_U: torch.Tensor) -> torch.Tensor:
    """Lu: cross-entropy of kept clips, divided by the number of all (FixMatch eq. 4), so that the mask is a weight too."""
    return (F.cross_entropy(strong_logits_UK.float(), labels_U, reduction="none") * keep_U).mean()


def contrast_loss(primary_UD: torch.Tensor, auxiliary_UD: torch.Tensor, temperature: float) -> torch.Tensor:
    """Lca: NT-Xent (Chen et al., 2020) between the two students' features of the same videos.

    The positive of a feature is the other student's of the same video; negatives are all other videos in both students
    (the paper's figure), over all workers, with gradient; mean over the 2 U anchors of this worker. DDP's mean over
    workers then equals the loss of one worker with all videos.
    """
    own_U2D = torch.stack([_normalize(primary_UD), _normalize(auxiliary_UD)], dim=1)
    all_G2D, first = _gather(own_U2D)
    videos, others = len(own_U2D), len(all_G2D)
    similarity = own_U2D.transpose(0, 1).flatten(0, 1) @ all_G2D.transpose(0, 1).flatten(0, 1).T / temperature
    own = torch.arange(first, first + videos, device=similarity.device)
    itself = F.one_hot(torch.cat([own, own + others]), 2 * others).bool()
    return F.cross_entropy(similarity.masked_fill(itself, float("-inf")), torch.cat([own + others, own]))


def alignment(primary_UD: torch.Tensor, auxiliary_UD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cosine between the students' features of the same video, and of different videos of this worker; no gradient."""
    cosine_UU = _normalize(primary_UD.detach()) @ _normalize(auxiliary_UD.detach()).T
    same = cosine_UU.diagonal().mean()
    pairs = max(1, cosine_UU.numel() - len(cosine_UU))
    return same, (cosine_UU.sum() - cosine_UU.diagonal().sum()) / pairs


def _normalize(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=1)


def _gather(features: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Features of all workers in order of rank, and where this worker's begin. Every worker must hold equally many."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, 0
    return _Gather.apply(features), dist.get_rank() * len(features)


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the sum over workers; torch.distributed.nn's own is deprecated since torch 2.14."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
