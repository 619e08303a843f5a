"""Videos that show none of the known classes: below which probability a video is rejected (open-set recognition).

The score is the probability of the most probable class by the mean of both networks (maximum softmax probability; Hendrycks and
Gimpel, ICLR 2017), because it is all that averages over clips, crops and networks leave: an energy (Liu et al., NeurIPS 2020)
needs logits. The threshold is that of a conformal test (Bates et al., Annals of Statistics 2023), which holds for few videos,
too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics import Labels, Scores

LARGEST_SHARE = 0.5
"""A model that rejects more of the videos of known classes than it keeps is of no use."""


@dataclass(frozen=True)
class Rejection:
    """When a video is rejected as showing none of the known classes."""

    share: float
    """Largest share (0..0.5) of the videos of known classes that is rejected by mistake, on average over choices of the
    held-out videos."""
    threshold: float
    """A video with a lower probability of its most probable class is rejected."""
    videos: int
    """How many held-out videos the threshold was found on."""
    below: int
    """How many of them would be rejected."""


def collect_confidences(labels: Labels, scores: Scores) -> list[float]:
    """Collects the probability (0..1) of the most probable class of each labeled video, ascending; 0 where it is not finite.

    ``labels`` [N] are -1 where the class is unknown, ``scores`` [N, K] probabilities.
    """
    best = scores[labels >= 0].max(axis=1)
    confidences: list[float] = np.sort(np.where(np.isfinite(best), np.minimum(best, 1.0), 0.0)).tolist()
    return confidences


def find_rejection(confidences: Sequence[float], share: float) -> Rejection | None:
    """Finds the threshold at which at most ``share`` of the videos of known classes are rejected, from those of held-out ones.

    It is the k-th lowest of n confidences with k = floor(share * (n + 1)): a further video of the same kind is as likely to be
    at each rank among them, so it lies below the k-th with a probability of at most k / (n + 1). None if k is 0, that is
    with fewer than ``count_least`` videos: then no threshold keeps the promise.
    """
    assert 0 < share <= LARGEST_SHARE
    rank = math.floor(share * (len(confidences) + 1) + 1e-9)
    if rank < 1:
        return None
    ascending = sorted(confidences)
    threshold = ascending[rank - 1]
    return Rejection(share, threshold, len(ascending), sum(value < threshold for value in ascending))


def count_least(share: float) -> int:
    """Counts the held-out videos that a share needs at least: 19 for 5 %."""
    return math.ceil(1 / share - 1e-9) - 1
