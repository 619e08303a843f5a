"""Whether probabilities can be believed: calibration error, reliability curve, log-likelihood, temperature scaling.

Everything here is numpy on N videos and K classes: ``labels`` is [N] int with -1 where the class is unknown, and such
videos are left out; ``scores`` is [N, K] float, finite probabilities in 0..1 that sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import Labels, Scores
from pipeline.seeds import Floats

BINS = 15
"""Bins of equal width in confidence, as Guo et al. (ICML 2017) have them."""
SMALLEST = 1e-12
"""Probabilities below count as this much: the logarithm of 0 would hide all other videos."""
TEMPERATURES = (0.05, 20.0)
"""The smallest and the largest temperature that ``fit_temperature`` tries."""


class ReliabilityBin(NamedTuple):
    """The videos whose confidence lies in one interval."""

    low: float
    high: float
    """The interval is above ``low``, up to ``high``."""
    videos: int
    confidence: float | None
    """Mean probability of the predicted class; None where there is no video."""
    accuracy: float | None
    """Share of them that is right."""


def compute_reliability(labels: Labels, scores: Scores, bins: int = BINS) -> list[ReliabilityBin]:
    """Computes how often predictions of each confidence are right. A calibrated model has as high an accuracy as confidence."""
    known = labels >= 0
    confidence, right = scores[known].max(axis=1), scores[known].argmax(axis=1) == labels[known]
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    curve = []
    for number, (low, high) in enumerate(pairwise(edges)):
        inside = index == number
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if inside.any() else (None, None)
        curve.append(ReliabilityBin(float(low), float(high), int(inside.sum()), *means))
    return curve


def compute_calibration_error(curve: Sequence[ReliabilityBin]) -> float | None:
    """Computes the expected calibration error, 0..1: the mean distance of confidence and accuracy over all videos (ECE; Guo et
    al., ICML 2017). None without a video."""
    videos = sum(one.videos for one in curve)
    gaps = [one.videos * abs((one.confidence or 0.0) - (one.accuracy or 0.0)) for one in curve]
    return sum(gaps) / videos if videos else None


def compute_log_losses(labels: Labels, scores: Scores) -> NDArray[np.float64]:
    """Computes -log(probability of the true class), in nats, of each labeled video, in their order."""
    known = np.flatnonzero(labels >= 0)
    return np.asarray(-np.log(np.maximum(scores[known, labels[known]], SMALLEST)), dtype=np.float64)


def compute_negative_log_likelihood(labels: Labels, scores: Scores) -> float | None:
    """Computes the mean of -log(probability of the true class), in nats; None without a labeled video."""
    losses = compute_log_losses(labels, scores)
    return float(losses.mean()) if len(losses) else None


def apply_temperature(scores: Scores, temperature: float) -> Scores:
    """Computes softmax(log(scores) / temperature) [N, K]: above 1 it makes confident predictions less so, and no video's
    predicted class changes. Of softmax scores it is what dividing the logits would give (Guo et al., ICML 2017)."""
    logits = np.log(np.maximum(scores, SMALLEST)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: Scores = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def apply_temperatures(scores: Mapping[str, Floats], temperatures: Mapping[str, float]) -> dict[str, Floats]:
    """Computes the calibrated probabilities of one video, [K] by ``PREDICTORS``: each by its own temperature, and those without
    one as they are. Everything that shows calibrated probabilities gets them here."""
    return {
        name: np.asarray(apply_temperature(values[None], temperatures[name])[0]) if name in temperatures else values
        for name, values in scores.items()
    }


def fit_temperature(labels: Labels, scores: Scores) -> float | None:
    """Finds the temperature at which labeled videos are most likely. It must be found on videos that are not the test videos.

    None where no such temperature exists: if no video is labeled, if a score is not finite, and if the likelihood is best at an
    end of ``TEMPERATURES``. The latter is so where every prediction is right, or so many are wrong that only equal scores for
    all classes would do.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and only this needs it

    known = labels >= 0
    if not known.any() or not np.isfinite(scores[known]).all():
        return None

    def compute_cost(log_temperature: float) -> float:
        scaled = apply_temperature(scores[known], float(np.exp(log_temperature)))
        return float(compute_log_losses(labels[known], scaled).mean())

    low, high = np.log(TEMPERATURES)
    best: Any = minimize_scalar(compute_cost, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x)) if low + 0.01 < best.x < high - 0.01 else None


def compute_calibration(labels: Labels, scores: Scores) -> dict[str, Any]:
    """Computes ``nll`` (nats), ``ece`` (0..1) and ``reliability`` (the bins as dicts), ready for ``json.dump``.

    If no video is labeled, or a score is not finite, these are None, and there are no bins.
    """
    known = labels >= 0
    if not known.any() or not np.isfinite(scores[known]).all():
        return {"nll": None, "ece": None, "reliability": []}
    curve = compute_reliability(labels, scores)
    return {
        "nll": compute_negative_log_likelihood(labels, scores),
        "ece": compute_calibration_error(curve),
        "reliability": [one._asdict() for one in curve],
    }


def is_of_evaluation(calibration: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
    """Returns whether the temperatures of a calibration.json are of the weights and the averaging of views by which the videos
    of an evaluation.json were scored. Files of earlier versions do not tell their weights, and never fit."""
    theirs, own = calibration.get("protocol") or {}, evaluation.get("protocol") or {}
    same = all(theirs.get(key) == own.get(key) for key in ("clips", "crops", "average", "precision"))
    weights = evaluation.get("weights_sha256")
    same_weights = weights is not None and calibration.get("weights_sha256") == weights
    return bool(own) and same and same_weights and calibration.get("step") == evaluation.get("step")
