"""Computes accuracies from scores: top-1, top-k, per class, confusion, the students' mean; and mean and standard deviation.

Everything here is numpy on N videos and K classes: ``labels`` is [N] int with -1 where the class is unknown,
``scores`` is [N, K] float (softmax probabilities in 0..1, averaged over the clips and crops of a video).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]


class MeanSd(NamedTuple):
    """The mean and sample standard deviation of n values."""

    mean: float
    sd: float | None
    """Divided by n - 1; None when n is 1, where a spread is unknown and not zero."""
    n: int


def find_predicted_classes(scores: Scores) -> Labels:
    """Finds [N] int64, the class of the highest score (the lowest index among equals), or -1 where a score is not finite.

    A student that diverged gives NaN. Their argmax would be class 0, which is sometimes right; -1 never is.
    """
    assert scores.ndim == 2 and scores.shape[1] > 0, f"scores must be [N, K], got {scores.shape}"
    finite = np.isfinite(scores).all(axis=1)
    return np.where(finite, np.nan_to_num(scores).argmax(axis=1), -1).astype(np.int64)


def compute_top1(labels: Labels, predicted: Labels) -> float | None:
    """Computes the share in 0..1 of the labeled videos whose class was predicted; None if no video is labeled."""
    known = labels >= 0
    return float((labels[known] == predicted[known]).mean()) if known.any() else None


def compute_class_accuracies(labels: Labels, predicted: Labels, num_classes: int) -> list[float | None]:
    """Computes for each of K classes the share in 0..1 of its videos that was predicted (recall); None for a class without
    any."""
    hits = np.bincount(labels[(labels >= 0) & (labels == predicted)], minlength=num_classes)
    totals = np.bincount(labels[labels >= 0], minlength=num_classes)
    return [float(hit / total) if total else None for hit, total in zip(hits, totals, strict=True)]


def find_top_k_hits(labels: Labels, scores: Scores, k: int) -> NDArray[np.bool_]:
    """Finds [N] whether the true class is among the ``k`` classes of the highest scores; the lower index goes first among
    equals. False where the class is unknown or a score is not finite."""
    known = (labels >= 0) & np.isfinite(scores).all(axis=1)
    own = scores[np.arange(len(labels)), np.maximum(labels, 0)][:, None]
    earlier = np.arange(scores.shape[1])[None] < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return np.asarray(known & (ranks < k))


def compute_mean_class_accuracy(class_accuracies: Sequence[float | None]) -> float | None:
    """Computes the mean of the classes' accuracies, in which every class with videos counts the same; None without any."""
    known = [share for share in class_accuracies if share is not None]
    return float(np.mean(known)) if known else None


def compute_confusion_matrix(labels: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """Counts [K, K] int64 videos, row = true class, column = predicted class. Videos with a -1 are left out."""
    both = (labels >= 0) & (predicted >= 0)
    cells = labels[both] * num_classes + predicted[both]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def average_students(*scores: Scores) -> Scores:
    """Averages the students' softmax probabilities, [N, K] each, with equal weights."""
    assert scores and len({s.shape for s in scores}) == 1, f"shapes differ: {[s.shape for s in scores]}"
    mean: Scores = np.mean(np.stack(scores), axis=0)
    return mean


def compute_mean_and_sd(values: Sequence[float]) -> MeanSd:
    """Computes the mean and sample standard deviation (n - 1) of at least one value, in the values' unit."""
    assert len(values) > 0, "the mean of nothing is not a number"
    array = np.asarray(values, dtype=np.float64)
    return MeanSd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))
