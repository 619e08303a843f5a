"""Intervals and tests: known values, exactness, and how often equal settings are called different."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.analysis.statistics import (
    Estimate,
    Matrix,
    adjust_by_holm,
    bootstrap_means,
    compute_degrees_of_freedom,
    compute_mcnemar_p,
    compute_mean_squares,
    describe_verdict,
    estimate_mean,
    estimate_over_seeds,
    format_p,
)

SHARES = st.lists(st.floats(0, 1), max_size=8)


def runs(generator: np.random.Generator, seeds: int, videos: np.ndarray, seed_sd: float, setting_sd: float = 0.5) -> Matrix:
    """[S, N] right or wrong: chance of a video = logistic(its ease + the seed's luck + how this setting likes the video)."""
    luck = generator.normal(scale=seed_sd, size=(seeds, 1))
    likes = generator.normal(scale=setting_sd, size=videos.shape)
    chance = 1 / (1 + np.exp(-(1.2 + videos + luck + likes)))
    return (generator.random(chance.shape) < chance).astype(float)


def test_mcnemar_by_hand() -> None:
    assert compute_mcnemar_p(np.zeros(5)) == 1
    assert compute_mcnemar_p(np.array([1.0] * 5 + [0.0] * 9)) == pytest.approx(2 / 32)
    assert compute_mcnemar_p(np.array([1.0] * 9 + [-1.0])) == pytest.approx(2 * 11 / 1024)  # 1 + 10 of 2^10 outcomes, two sides
    assert compute_mcnemar_p(np.array([1.0, -1.0])) == 1


def test_holm_by_hand() -> None:
    assert adjust_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_by_holm([0.02, None, 0.9]) == [0.04, None, 0.9]
    assert adjust_by_holm([]) == []


@given(SHARES)
def test_holm_keeps_order_never_helps_and_stays_between_none_and_bonferroni(p_values: list[float]) -> None:
    adjusted = [p for p in adjust_by_holm(p_values) if p is not None]
    assert len(adjusted) == len(p_values)
    for p, after in zip(p_values, adjusted, strict=True):
        assert p <= after <= min(1, p * len(p_values)) + 1e-12
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def test_mean_squares_of_a_layout_worked_by_hand() -> None:
    """Two seeds, three videos: row means 2 and 4, column means 1, 3, 5, no interaction."""
    assert compute_mean_squares(np.array([[0.0, 2, 4], [2, 4, 6]])) == pytest.approx((6.0, 8.0, 0.0))


def test_over_seeds_is_students_interval() -> None:
    found = estimate_over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.seeds, found.over) == (2.0, 1.0, 3, "seeds")
    assert found.low is not None and found.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert found.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert estimate_over_seeds([5.0]) == Estimate(5.0, None, 1, None, None, "nothing", None)
    assert estimate_over_seeds([3.0, 3.0]).p is None  # no spread among two is no proof


def test_one_seed_says_what_its_interval_is_of() -> None:
    hits = np.array([[1.0] * 30 + [0.0] * 10])
    found = estimate_mean(hits)
    assert found.over == "videos" and found.sd is None and found.seeds == 1
    wanted = stats.t.ppf(0.975, 39) * math.sqrt(0.75 * 0.25 / 40)
    assert found.high is not None and found.high - 0.75 == pytest.approx(wanted, rel=0.1)


def test_the_bootstrap_has_the_variance_of_the_crossed_layout() -> None:
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(4, 1)) * 0.5 + generator.normal(size=60) + generator.normal(size=(4, 60))
    by_seed, by_video, rest = compute_mean_squares(differences)
    wanted = (by_seed - rest + by_video) / differences.size
    assert np.var(bootstrap_means(differences, 20_000)) == pytest.approx(wanted, rel=0.05)


def test_seeds_that_differ_no_more_than_their_videos_add_nothing() -> None:
    values = np.tile([1.0, 0.0, 0.0, 1.0, 1.0], (3, 4))
    assert np.var(bootstrap_means(values)) == pytest.approx(0.24 / 20, rel=0.15)
    assert compute_degrees_of_freedom(values) == 19


def test_all_right_or_all_alike_is_no_error() -> None:
    assert (found := estimate_mean(np.ones((3, 7)))).low == found.high == 1
    same = estimate_mean(np.zeros((3, 7)))
    assert same.p == 1 and describe_verdict(same, same.p) == "not distinguishable at n = 3"


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("videos", [80, 1000])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2, 0.6])
def test_equal_settings_are_rarely_called_different(seeds: int, videos: int, seed_sd: float) -> None:
    """At 5 %, over seeds and videos drawn anew each time; 400 repetitions have a standard error of 1.1 %."""
    generator, found = np.random.default_rng(seeds * videos), []
    for _ in range(400):
        ease = generator.normal(scale=2.0, size=videos)
        one, other = (runs(generator, seeds, ease, seed_sd) for _ in range(2))
        by_seed, by_video, rest = compute_mean_squares(other - one)
        error = math.sqrt((max(by_seed - rest, 0) + by_video) / one.size)  # what the bootstrap comes to, see above
        found.append(2 * stats.t.sf(abs((other - one).mean()) / error, compute_degrees_of_freedom(other - one)) < 0.05)
    assert np.mean(found) <= 0.05 + 2.5 * 0.011


def test_videos_alone_would_call_equal_settings_different() -> None:
    """Why one seed is never called better: with seeds that differ, McNemar's test errs most of the time."""
    generator, found = np.random.default_rng(0), []
    for _ in range(100):
        ease = generator.normal(scale=2.0, size=1000)
        one, other = (runs(generator, 1, ease, 0.6) for _ in range(2))
        found.append(compute_mcnemar_p((other - one)[0]) < 0.05)
    assert np.mean(found) > 0.5


def test_intervals_cover_what_they_should() -> None:
    """The accuracy over all seeds and videos lies in 90 to 100 % of 95 % intervals of 3 seeds x 80 videos."""
    generator = np.random.default_rng(1)
    ease = generator.normal(scale=2.0, size=200_000)
    truth = float(np.mean([runs(generator, 1, ease, 0.3).mean() for _ in range(40)]))
    inside = []
    for _ in range(200):
        found = estimate_mean(runs(generator, 3, generator.normal(scale=2.0, size=80), 0.3))
        assert found.low is not None and found.high is not None
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) >= 0.90


def test_a_large_gain_is_found_and_a_small_one_is_not() -> None:
    generator = np.random.default_rng(3)
    ease = generator.normal(scale=2.0, size=500)
    base = runs(generator, 3, ease, 0.1)
    large, small = (estimate_mean(runs(generator, 3, ease + gain, 0.1) - base) for gain in (1.5, 0.1))
    assert describe_verdict(large, large.p) == "better (n = 3)"
    assert describe_verdict(small, small.p) == "not distinguishable at n = 3"
    assert describe_verdict(large.scale(-1), large.p) == "worse (n = 3)"


def test_words_for_one_seed_and_small_numbers() -> None:
    one = Estimate(0.1, None, 1, 0.05, 0.15, "videos", 0.0004)
    assert describe_verdict(one, one.p) == "one seed: the runs differ, the settings may not"
    assert describe_verdict(one, 0.5) == describe_verdict(one, None) == "one seed: not distinguishable"
    assert [format_p(p) for p in (None, 0.0001, 0.0321, 0.25)] == ["–", "< 0.001", "= 0.032", "= 0.25"]
