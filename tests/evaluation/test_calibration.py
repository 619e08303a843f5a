"""Calibration: values by hand, agreement with scikit-learn, and a temperature that is found again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from pipeline.evaluation.calibration import (
    apply_temperature,
    compute_calibration_error,
    compute_negative_log_likelihood,
    compute_reliability,
    fit_temperature,
)


def draw(seed: int, videos: int = 400, classes: int = 5, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are drawn from the probabilities of logits, and the softmax of these logits times ``sharpness``."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((videos, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(classes, p=row) for row in true])
    scores = np.exp(sharpness * logits)
    return labels, scores / scores.sum(axis=1, keepdims=True)


def test_reliability_and_its_error_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    curve = compute_reliability(np.array([0, 1, 1, -1]), scores, bins=4)
    assert [(one.low, one.high, one.videos) for one in curve] == [(0, 0.25, 0), (0.25, 0.5, 0), (0.5, 0.75, 1), (0.75, 1, 2)]
    assert curve[0].confidence is None and curve[0].accuracy is None
    assert curve[2][3:] == pytest.approx((0.6, 1.0))
    assert curve[3][3:] == pytest.approx((0.9, 0.5))
    assert compute_calibration_error(curve) == pytest.approx((0.4 + 2 * 0.4) / 3)


def test_what_is_sure_and_right_has_no_error() -> None:
    curve = compute_reliability(np.arange(3), np.eye(3))
    assert compute_calibration_error(curve) == 0
    assert curve[-1].videos == 3


def test_no_video_gives_no_figure() -> None:
    labels, scores = np.array([-1, -1]), np.full((2, 2), 0.5)
    assert compute_calibration_error(compute_reliability(labels, scores)) is None
    assert compute_negative_log_likelihood(labels, scores) is None
    assert fit_temperature(labels, scores) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    labels, scores = draw(seed)
    assert compute_negative_log_likelihood(labels, scores) == pytest.approx(log_loss(labels, scores), abs=1e-9)
    curve = [one for one in compute_reliability(labels, scores, bins=10) if one.videos]
    right, confidence = labels == scores.argmax(axis=1), scores.max(axis=1)
    accuracies, confidences = calibration_curve(right, confidence, n_bins=10)
    np.testing.assert_allclose([one.accuracy for one in curve], accuracies, atol=1e-9)
    np.testing.assert_allclose([one.confidence for one in curve], confidences, atol=1e-9)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_too_sharp_and_too_soft_scores(sharpness: float) -> None:
    labels, scores = draw(0, videos=3000, sharpness=sharpness)
    temperature = fit_temperature(labels, scores)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    assert temperature is not None
    scaled = apply_temperature(scores, temperature)
    before, after = (compute_calibration_error(compute_reliability(labels, values)) for values in (scores, scaled))
    assert after is not None and before is not None and after < max(0.03, before / 3)


def test_there_is_no_temperature_where_every_video_is_right_or_the_scores_are_not_finite() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert fit_temperature(np.array([0, 1]), scores) is None  # ever colder would be ever better
    assert fit_temperature(np.array([1, 0]), scores) is None  # and here ever hotter
    assert fit_temperature(np.array([0, 0]), np.array([[np.nan, np.nan], [0.2, 0.8]])) is None


@settings(max_examples=20)
@given(st.floats(0.1, 10), st.integers(0, 50))
def test_a_temperature_changes_no_prediction_and_keeps_sums(temperature: float, seed: int) -> None:
    _, scores = draw(seed, videos=20)
    scaled = apply_temperature(scores, temperature)
    np.testing.assert_array_equal(scaled.argmax(axis=1), scores.argmax(axis=1))
    np.testing.assert_allclose(scaled.sum(axis=1), 1)


def test_temperature_one_changes_nothing_and_zeros_are_no_trouble() -> None:
    scores = np.array([[1.0, 0.0], [0.25, 0.75]])
    np.testing.assert_allclose(apply_temperature(scores, 1.0), scores, atol=1e-9)
    assert np.isfinite(compute_negative_log_likelihood(np.array([1, 1]), scores) or np.nan)
