"""The loss terms, as pure functions on one worker's tensors.

Shape letters beyond batch.py's: U unlabeled videos of one worker, G unlabeled videos of all workers together, M features
of one worker (U, or U times moments).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from pipeline.collectives import count_on_workers, gather_with_gradient, get_rank


def compute_supervised_loss(
    logits_BK: torch.Tensor, labels_B: torch.Tensor, smoothing: float = 0.0, shares_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes Ls, the mean cross-entropy of the labeled clips, with smoothed labels (Szegedy et al., CVPR 2016).

    ``shares_B`` says how much of itself each clip kept when it was mixed with the one before it (mixup, Zhang et al., ICLR
    2018); the labels of both clips are weighted accordingly.
    """
    logits = logits_BK.float()
    if shares_B is None:
        return F.cross_entropy(logits, labels_B, label_smoothing=smoothing)
    own, other = (
        F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") for labels in (labels_B, labels_B.roll(1))
    )
    return (shares_B * own + (1 - shares_B) * other).mean()


def compute_pseudo_label_loss(strong_logits_UK: torch.Tensor, labels: torch.Tensor, weights_U: torch.Tensor) -> torch.Tensor:
    """Computes Lu, the cross-entropy with labels [U] int64 or [U, K] probabilities.

    Each clip counts by its weight (bool or 0..1), and the sum is divided by the number of all clips (FixMatch eq. 4), so the
    mask is a weight, too.
    """
    return (F.cross_entropy(strong_logits_UK.float(), labels, reduction="none") * weights_U).mean()


def compute_contrast_loss(
    primary_MD: torch.Tensor,
    auxiliary_MD: torch.Tensor,
    temperature: float,
    negatives: Literal["both", "cross"] = "both",
    moments: int = 1,
) -> torch.Tensor:
    """Computes Lca, NT-Xent (Chen et al., 2020) between the two students' features of the same videos.

    The positive of a feature is the other student's feature of the same video. Negatives are all other videos in both students
    (the paper's figure), or in the other student only (``cross``, LTG), over all workers and with gradient. The mean is over
    the 2 M anchors of this worker; DDP's mean over workers then equals the loss of one worker with all videos. With
    ``moments`` features per video in adjacent rows, a positive is the same moment, and other moments of the same video are
    ignored.
    """
    own_M2D = torch.stack([_normalize(primary_MD), _normalize(auxiliary_MD)], dim=1)
    all_G2D = gather_with_gradient(own_M2D)
    count, total, device = len(own_M2D), len(all_G2D), own_M2D.device
    similarity = _multiply(own_M2D.transpose(0, 1).flatten(0, 1), all_G2D.transpose(0, 1).flatten(0, 1)) / temperature
    first = sum(count_on_workers(count)[: get_rank()])
    own = torch.arange(first, first + count, device=device)
    partners = torch.cat([own + total, own])
    columns = torch.arange(2 * total, device=device)
    videos = columns % total // moments
    ignored = (videos == (own.repeat(2) // moments)[:, None]) & (columns != partners[:, None])
    if negatives == "cross":
        ignored |= (columns // total) == (torch.arange(2 * count, device=device) // count)[:, None]
    return F.cross_entropy(similarity.masked_fill(ignored, float("-inf")), partners)


def compute_group_contrast_loss(fast_UK: torch.Tensor, slow_UK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Computes TCL's group contrast: NT-Xent between the mean softmax vectors of each pseudo-class (argmax) in two views.

    The groups are over all workers, with gradient; a class that does not occur in both views has no group. The loss is 0 with
    a zero gradient if fewer than two groups are left, since one group has nothing to differ from. All K classes are computed,
    and those without a group are masked, because asking the device how many there are would wait for it.
    """
    fast_GK, slow_GK = gather_with_gradient(torch.stack([fast_UK.float(), slow_UK.float()], dim=1)).unbind(dim=1)
    means, sizes = zip(*(_average_groups(view_GK) for view_GK in (fast_GK, slow_GK)), strict=True)
    shared_2K = ((sizes[0] > 0) & (sizes[1] > 0)).repeat(2)
    features = torch.cat([_normalize(mean) for mean in means])
    anchors = torch.arange(len(features), device=features.device)
    ignored = ~shared_2K | (anchors == anchors[:, None])
    similarity = (_multiply(features, features) / temperature).masked_fill(ignored, float("-inf"))
    similarity = similarity.masked_fill(~shared_2K[:, None], 0.0)
    losses = F.cross_entropy(similarity, anchors.roll(len(anchors) // 2), reduction="none")
    loss: torch.Tensor = losses.masked_fill(~shared_2K, 0.0).sum() / shared_2K.sum().clamp(min=1)
    return loss


def _average_groups(view_GK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean [K, K] of the rows whose argmax is each class, and the numbers [K] of these rows."""
    groups_GK = F.one_hot(view_GK.argmax(dim=1), view_GK.shape[1]).to(view_GK.dtype)
    sizes_K = groups_GK.sum(dim=0)
    return _multiply(groups_GK.T, view_GK.T) / sizes_K.clamp(min=1)[:, None], sizes_K


def compute_consistency_loss(logits_UK: torch.Tensor, targets_UK: torch.Tensor, kind: Literal["mse", "kl"]) -> torch.Tensor:
    """Computes the mean over clips of the squared distance between softmax vectors (summed over classes), or of KL(target ||
    softmax)."""
    if kind == "mse":
        return (logits_UK.float().softmax(dim=1) - targets_UK).square().sum(dim=1).mean()
    return F.kl_div(logits_UK.float().log_softmax(dim=1), targets_UK, reduction="batchmean")


def compute_alignment_loss(features_MD: torch.Tensor, target_MD: torch.Tensor) -> torch.Tensor:
    """Computes LTG's alignment, the mean of 1 - cosine, without gradient to the target."""
    return (1 - (_normalize(features_MD) * _normalize(target_MD.detach())).sum(dim=1)).mean()


def compute_alignment(
    primary_MD: torch.Tensor, auxiliary_MD: torch.Tensor, moments: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the mean cosine between the students' features of the same video, and of different videos of this worker.

    Neither has a gradient. With ``moments`` features per video in adjacent rows, "the same" is the same moment, and other
    moments of the same video are ignored.
    """
    cosine_MM = _multiply(_normalize(primary_MD.detach()), _normalize(auxiliary_MD.detach()))
    videos_M = torch.arange(len(cosine_MM), device=cosine_MM.device) // moments
    different_MM = videos_M[:, None] != videos_M
    return cosine_MM.diagonal().mean(), (cosine_MM * different_MM).sum() / different_MM.sum().clamp(min=1)


def _multiply(one_ND: torch.Tensor, other_MD: torch.Tensor) -> torch.Tensor:
    """Computes all scalar products [N, M] in the tensors' own precision: autocast would round cosines to bfloat16's 8 bits."""
    with torch.autocast(one_ND.device.type, enabled=False):
        return one_ND @ other_MD.T


def _normalize(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)
