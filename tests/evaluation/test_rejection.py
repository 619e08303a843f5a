"""The threshold below which videos of no known class are rejected keeps its promise, also of few held-out videos."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.rejection import Rejection, collect_confidences, count_least, find_rejection


def test_the_threshold_by_hand() -> None:
    confidences = [0.9, 0.5, 0.7, 0.6, 0.8, 0.95, 0.4, 0.99, 0.85]  # k = 1, 2, 5 of 9
    assert find_rejection(confidences, 0.1) == Rejection(0.1, 0.4, 9, 0)
    assert find_rejection(confidences, 0.29) == Rejection(0.29, 0.5, 9, 1)
    assert find_rejection(confidences, 0.5) == Rejection(0.5, 0.8, 9, 4)
    assert find_rejection(confidences, 0.09) is None and find_rejection([], 0.5) is None
    assert find_rejection([0.7] * 99, 0.5) == Rejection(0.5, 0.7, 99, 0)  # whoever is equal is kept


@pytest.mark.parametrize("share", [0.005, 0.01, 0.03, 0.05, 0.07, 0.1, 0.29, 0.3, 1 / 3, 0.5])
def test_so_many_videos_are_needed_and_no_more(share: float) -> None:
    least = count_least(share)
    assert find_rejection([0.5] * least, share) is not None and find_rejection([0.5] * (least - 1), share) is None


def test_five_percent_need_19_videos() -> None:
    assert [count_least(share) for share in (0.5, 0.1, 0.05, 0.01)] == [1, 9, 19, 99]


@pytest.mark.parametrize(("videos", "share"), [(19, 0.05), (30, 0.05), (100, 0.05), (12, 0.25), (57, 0.1)])
def test_known_videos_are_rejected_as_seldom_as_promised(videos: int, share: float) -> None:
    """Over 4,000 draws of held-out videos, of which each threshold of even confidences is its own false rejection rate."""
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(4000):
        rejection = find_rejection(generator.random(videos).tolist(), share)
        assert rejection is not None
        rates.append(rejection.threshold)
    expected, error = int(share * (videos + 1) + 1e-9) / (videos + 1), np.std(rates) / 4000**0.5
    assert np.mean(rates) == pytest.approx(expected, abs=4 * error) and expected <= share
    plain = np.quantile(generator.random((4000, videos)), share, axis=1)  # numpy's own is not as careful
    assert np.mean(plain) > np.mean(rates)


def test_confidences_are_of_labeled_videos_and_finite() -> None:
    scores = np.array([[0.3, 0.7], [0.9, 0.1], [np.nan, np.nan], [1 + 1e-9, 0.0], [0.6, 0.4]])
    assert collect_confidences(np.array([0, -1, 1, 0, 0]), scores) == [0.0, 0.6, 0.7, 1.0]
