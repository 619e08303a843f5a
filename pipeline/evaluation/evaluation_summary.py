"""Summarizes the scores of test videos: the figures of evaluation.json, with intervals over videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import list_first
from pipeline.evaluation.calibration import compute_calibration, compute_log_losses
from pipeline.evaluation.metrics import (
    Labels,
    Scores,
    average_students,
    compute_class_accuracies,
    compute_mean_class_accuracy,
    compute_top1,
    find_predicted_classes,
    find_top_k_hits,
)

LEAST_CLASSES = 6
"""Below so many classes there is no top-5 accuracy: of five classes, five guesses are always right."""
DRAWS, SEED = 1000, 0
"""Draws of the bootstrap, and the seed of its random numbers: the same scores give the same interval."""
DRAWN_AT_ONCE = 2**20
"""Video indices in memory at once."""


def summarize(labels: Labels, scores: Mapping[str, Scores], classes: Sequence[str], undecodable: int = 0) -> dict[str, Any]:
    """Computes the content of evaluation.json without the protocol, ready for ``json.dump``.

    Args:
        labels: [N] class indices; -1 (unknown) is left out.
        scores: [N, K] for each student. With both students and no ``mean``, their mean is added.
        classes: K names.
        undecodable: How many labeled videos there are beside these, of which nothing could be decoded.

    Returns:
        ``{"videos": n, "classes": [...], student: figures, ...}``: n is the number of labeled videos with scores, and
        ``figures`` what ``compute_figures`` returns.
    """
    views = dict(scores)
    if "mean" not in views and {"primary", "auxiliary"} <= views.keys():
        views["mean"] = average_students(views["primary"], views["auxiliary"])
    summary: dict[str, Any] = {"videos": int((labels >= 0).sum()), "classes": list(classes)}
    for name, values in views.items():
        assert values.shape == (len(labels), len(classes)), f"{name}: {values.shape} for {len(labels)} x {len(classes)}"
        summary[name] = compute_figures(labels, values, classes, undecodable)
    return summary


def compute_figures(labels: Labels, scores: Scores, classes: Sequence[str], undecodable: int = 0) -> dict[str, Any]:
    """Computes the figures of one student (docs/evaluation.md explains each). All but ``nll``, in nats, are shares in 0..1.

    Accuracies count a student whose scores are not finite as wrong; of such scores there is no likelihood and no calibration.
    Figures are None if no video has a label.
    """
    known = labels >= 0
    predicted = find_predicted_classes(scores)
    shares = compute_class_accuracies(labels, predicted, len(classes))
    right = predicted[known] == labels[known]
    in_top5 = find_top_k_hits(labels, scores, 5)[known] if len(classes) >= LEAST_CLASSES else None
    calibration = compute_calibration(labels, scores)
    probabilities = np.nan_to_num(scores[known, labels[known]])
    losses = None if calibration["nll"] is None else compute_log_losses(labels, scores)
    values = {"top1": right, "top5": in_top5, "nll": losses}
    return {
        "top1": compute_top1(labels, predicted),
        "top5": float(in_top5.mean()) if in_top5 is not None and known.any() else None,
        "mean_class_accuracy": compute_mean_class_accuracy(shares),
        "nll": calibration["nll"],
        "ece": calibration["ece"],
        "top1_with_undecodable": float(right.sum() / (len(right) + undecodable)) if len(right) + undecodable else None,
        "true_probability": float(probabilities.mean()) if known.any() else None,  # finer than top-1: small sets tie there
        "interval": compute_intervals({k: v for k, v in values.items() if v is not None}, labels[known], right, len(classes)),
        "reliability": calibration["reliability"],
        "per_class": dict(zip(classes, shares, strict=True)),
    }


def compute_intervals(
    values: Mapping[str, NDArray[Any]], labels: Labels, right: NDArray[np.bool_], num_classes: int
) -> dict[str, tuple[float, float]]:
    """Computes 95 % intervals over N labeled videos: percentiles of what videos that are drawn again give (bootstrap; Efron &
    Tibshirani, 1993). They say what other videos of the same kind would change, not what another seed would.

    ``values`` are numbers [N] whose mean is wanted. The mean class accuracy, of ``labels`` and ``right``, is added. Of fewer
    than two videos there is no interval.
    """
    count = len(labels)
    if count < 2:
        return {}
    generator = np.random.default_rng(SEED)
    drawn: dict[str, list[NDArray[Any]]] = {name: [] for name in (*values, "mean_class_accuracy")}
    size = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, DRAWS, size):
        indices = generator.integers(count, size=(min(size, DRAWS - start), count))
        for name, of_videos in values.items():
            drawn[name].append(of_videos[indices].mean(axis=1))
        drawn["mean_class_accuracy"].append(_average_classes(labels[indices], right[indices], num_classes))
    ends = {name: np.percentile(np.concatenate(parts), (2.5, 97.5)) for name, parts in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _average_classes(labels_DN: Labels, right_DN: NDArray[np.bool_], num_classes: int) -> NDArray[np.float64]:
    """Computes the mean class accuracy of each of D draws of videos, over the classes that were drawn."""
    draws = len(labels_DN)
    cells = (labels_DN + num_classes * np.arange(draws)[:, None]).ravel()
    totals = np.bincount(cells, minlength=draws * num_classes).reshape(draws, num_classes)
    hits = np.bincount(cells[right_DN.ravel()], minlength=draws * num_classes).reshape(draws, num_classes)
    shares = np.divide(hits, totals, out=np.zeros(totals.shape), where=totals > 0)
    return np.asarray(shares.sum(axis=1) / (totals > 0).sum(axis=1), dtype=np.float64)


def format_figures(summary: Mapping[str, Any]) -> list[str]:
    """Formats the figures of an evaluation for the terminal: a head, and a line for each student."""
    lines = ["           top-1   95 % interval   top-5  class mean     NLL    ECE"]
    for name in ("primary", "auxiliary", "mean"):
        figures = summary[name]
        low, high = figures["interval"].get("top1", (None, None))
        interval = "–" if low is None else f"{100 * low:.1f} to {100 * high:.1f} %"
        cells = [_format_share(figures[key]) for key in ("top1", "top5", "mean_class_accuracy", "ece")]
        nll = "–" if figures["nll"] is None else f"{figures['nll']:.3f}"
        lines.append(f"{name:9} {cells[0]:>6}  {interval:>14}  {cells[1]:>6}  {cells[2]:>10}  {nll:>6}  {cells[3]:>5}")
    return lines


def describe_untested_classes(summary: Mapping[str, Any]) -> str:
    """Describes the classes of which no labeled video was scored, for a note; "" if there is none, or no labeled video."""
    names = [name for name, share in summary["mean"]["per_class"].items() if share is None]
    if not names or not summary["videos"]:
        return ""
    listed = ", ".join(list_first(names))
    tested = len(summary["classes"]) - len(names)
    what = f"no {summary['split']} videos of {listed}: accuracies say nothing of these classes"
    return f"{what}, and the mean class accuracy is over the other {tested}"


def describe_lost_videos(summary: Mapping[str, Any]) -> str:
    """Describes top-1 with every labeled video that has no scores counted as wrong, for a note; "" if all have scores, or
    none has."""
    count = summary.get("labeled_without_scores", 0)
    if not count or not summary["videos"]:
        return ""
    shares = ", ".join(f"{name} {summary[name]['top1_with_undecodable']:.1%}" for name in ("primary", "auxiliary", "mean"))
    return f"with the labeled videos that have no scores ({count}) counted as wrong, top-1 is: {shares}"


def _format_share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
