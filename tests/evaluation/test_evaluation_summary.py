"""The figures of evaluation.json: agreement with scikit-learn, and intervals that contain what they should."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from pipeline.evaluation.evaluation_summary import compute_figures, summarize
from pipeline.evaluation.metrics import find_top_k_hits


def draw(videos: int, classes: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels, some of them unknown, and softmax scores that favor the true class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, classes, size=videos)
    logits = generator.normal(size=(videos, classes))
    logits[np.arange(videos), labels] += 1.5
    powers = np.exp(logits)
    return labels, powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (5, 1), (8, 2), (30, 3)])
def test_figures_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    labels, scores = draw(300, classes, seed)
    figures = compute_figures(labels, scores, [f"class {index}" for index in range(classes)])
    known, every = labels >= 0, np.arange(classes)
    truth, own = labels[known], scores[known]
    assert figures["top1"] == pytest.approx((own.argmax(axis=1) == truth).mean(), abs=1e-12)
    if classes > 5:
        assert figures["top5"] == pytest.approx(top_k_accuracy_score(truth, own, k=5, labels=every), abs=1e-12)
    else:
        assert figures["top5"] is None
    assert figures["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(truth, own.argmax(axis=1)), abs=1e-12)
    assert figures["nll"] == pytest.approx(log_loss(truth, own, labels=every), abs=1e-9)


def test_equal_scores_are_ranked_by_their_index() -> None:
    scores = np.full((3, 4), 0.25)
    labels = np.array([0, 1, -1])
    assert find_top_k_hits(labels, scores, 1).tolist() == [True, False, False]
    assert find_top_k_hits(labels, scores, 2).tolist() == [True, True, False]


def test_undecodable_videos_count_as_wrong_in_the_second_accuracy() -> None:
    labels, scores = np.array([0, 1, 1, -1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.5, 0.5]])
    figures = summarize(labels, {"primary": scores}, ["a", "b"], undecodable=2)["primary"]
    assert figures["top1"] == pytest.approx(2 / 3) and figures["top1_with_undecodable"] == pytest.approx(2 / 5)


def test_a_student_that_diverged_has_accuracies_and_neither_likelihood_nor_calibration() -> None:
    labels, scores = np.array([0, 1]), np.array([[np.nan, np.nan], [0.2, 0.8]])
    figures = json.loads(json.dumps(compute_figures(labels, scores, ["a", "b"]), allow_nan=False))
    assert figures["top1"] == 0.5 and figures["nll"] is None and figures["ece"] is None and figures["reliability"] == []
    assert "nll" not in figures["interval"]


def test_without_labels_every_figure_is_unknown() -> None:
    figures = compute_figures(np.array([-1, -1]), np.full((2, 7), 1 / 7), list("abcdefg"))
    assert {figures[name] for name in ("top1", "top5", "mean_class_accuracy", "nll", "ece", "true_probability")} == {None}
    assert figures["interval"] == {}


def test_an_interval_of_accuracy_is_that_of_the_binomial_distribution() -> None:
    """Drawn again, the number of right videos is binomial; here 300 of 400: 75 % with a standard error of 2.165 points."""
    scores = np.repeat([[0.9, 0.1], [0.1, 0.9]], [300, 100], axis=0)
    first, again = (compute_figures(np.zeros(400, np.int64), scores, ["a", "b"])["interval"] for _ in range(2))
    assert first == again
    assert first["top1"] == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.006)
    assert first["mean_class_accuracy"] == first["top1"]  # of one class


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        labels = np.random.default_rng(seed).integers(0, 2, size=100)
        right = np.random.default_rng(1000 + seed).random(100) < 0.7
        scores = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.8 + 0.1
        low, high = compute_figures(labels, scores, ["a", "b"])["interval"]["mean_class_accuracy"]
        covered += low <= 0.7 <= high
    assert covered >= 51
