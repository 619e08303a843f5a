"""Estimates how far a number would move with other seeds and other test videos, and whether two settings can be told apart.

A matrix [S, N] holds the results of S runs (seeds) on N test videos: 1 if the video was classified correctly and 0 if not, or
the difference of two such matrices for the same seeds and videos. Both the seeds and the videos are samples, and they are
crossed: every seed is tested on the same videos. The variance of the mean therefore has three parts (Searle, Casella &
McCulloch, Variance Components, 1992),

    var = seeds / S + videos / N + rest / (S N),

and an interval over the videos alone would be valid for these very runs only. All resampling uses constant seeds, so the same
runs give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats takes half a second more to import

from pipeline.evaluation.metrics import compute_mean_and_sd

Matrix = NDArray[np.floating[Any]]
DRAWS = 1000
"""The number of bootstrap draws: with 1,000, the standard error is known to 1 / sqrt(2 x 1000) = 2 %."""
ALPHA = 0.05
"""The probability of calling two equal settings different, over all comparisons of a column together (Holm)."""
Over = Literal["seeds and videos", "videos", "seeds", "nothing"]
_VALUES_AT_ONCE = 2**13
"""Videos that are drawn together: so few that they stay in a processor's cache."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty, in the unit of the values."""

    mean: float
    sd: float | None
    """Sample standard deviation over the seeds; None with one seed."""
    seeds: int
    """The number of seeds."""
    low: float | None
    """The ends of the 95 % interval; None if nothing is known of the spread."""
    high: float | None
    over: Over
    """What the interval resamples: if this is the videos alone, another seed may fall outside of it."""
    p: float | None
    """The two-sided probability of a mean at least that far from 0 if the true one is 0; None if it cannot be computed."""

    def scale(self, factor: float) -> Estimate:
        """Returns the estimate in another unit, which is ``factor`` times as small."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high)[:: 1 if factor > 0 else -1])
        sd = None if self.sd is None else self.sd * abs(factor)
        return Estimate(self.mean * factor, sd, self.seeds, low, high, self.over, self.p)


def estimate_mean(values_SN: Matrix) -> Estimate:
    """Estimates the mean of ``values_SN`` over seeds and videos, with an interval by bootstrap over both.

    The bootstrap resamples the videos and S - 1 of the seeds (with S of them the spread would be too small by (S - 1) / S).
    The seeds' effects are first shrunk to the part that the noise of single videos does not explain, which would else count
    twice. The interval is the standard error times Student's t with Satterthwaite's degrees of freedom, because 3 seeds are
    not 30; p uses the same standard error. With one seed only the videos are resampled, and p is exact (McNemar) for
    differences of right and wrong.
    """
    assert values_SN.ndim == 2 and values_SN.size, f"values must be [S, N], got {values_SN.shape}"
    seeds, videos = values_SN.shape
    if videos == 1:
        return estimate_over_seeds(values_SN[:, 0].tolist())
    mean, sd = float(values_SN.mean()), compute_mean_and_sd(values_SN.mean(axis=1).tolist()).sd
    error = float(np.std(bootstrap_means(values_SN), ddof=1))
    margin = -float(special.stdtrit(compute_degrees_of_freedom(values_SN), ALPHA / 2)) * error
    over: Over = "seeds and videos" if seeds > 1 else "videos"
    p = _compute_t_test_p(mean, error, compute_degrees_of_freedom(values_SN)) if seeds > 1 else compute_mcnemar_p(values_SN[0])
    return Estimate(mean, sd, seeds, mean - margin, mean + margin, over, p)


def estimate_over_seeds(values: Sequence[float]) -> Estimate:
    """Estimates the mean of one number per seed by Student's t, for runs whose results on single videos are unknown."""
    mean, sd, seeds = compute_mean_and_sd(values)
    if sd is None:
        return Estimate(mean, None, seeds, None, None, "nothing", None)
    error = sd / math.sqrt(seeds)
    margin = -float(special.stdtrit(seeds - 1, ALPHA / 2)) * error
    p = _compute_t_test_p(mean, error, seeds - 1) if sd else None
    return Estimate(mean, sd, seeds, mean - margin, mean + margin, "seeds", p)


def bootstrap_means(values_SN: Matrix, draws: int = DRAWS) -> NDArray[np.float64]:
    """Returns the means [draws] of the bootstrap that ``estimate_mean`` describes."""
    seeds, videos = values_SN.shape
    generator = np.random.default_rng(0)
    columns = values_SN.mean(axis=0)
    at_once = max(1, _VALUES_AT_ONCE // videos)
    parts = [min(at_once, draws - first) for first in range(0, draws, at_once)]
    means = np.concatenate([columns[generator.integers(videos, size=(part, videos))].mean(axis=1) for part in parts])
    if seeds == 1:
        return means
    by_seed, _, rest = compute_mean_squares(values_SN)
    effects = (values_SN.mean(axis=1) - values_SN.mean()) * math.sqrt(max(0.0, 1 - rest / by_seed) if by_seed else 0.0)
    resampled: NDArray[np.float64] = means + effects[generator.integers(seeds, size=(draws, seeds - 1))].mean(axis=1)
    return resampled


def compute_mean_squares(values_SN: Matrix) -> tuple[float, float, float]:
    """Computes the mean squares of seeds, of videos and of the rest, in a two-way layout without repetition; S and N at least
    2."""
    seeds, videos = values_SN.shape
    rows, columns, mean = values_SN.mean(axis=1), values_SN.mean(axis=0), values_SN.mean()
    rest = values_SN - rows[:, None] - columns[None] + mean
    return (
        float(videos * np.square(rows - mean).sum() / (seeds - 1)),
        float(seeds * np.square(columns - mean).sum() / (videos - 1)),
        float(np.square(rest).sum() / ((seeds - 1) * (videos - 1))),
    )


def compute_degrees_of_freedom(values_SN: Matrix) -> int:
    """Computes Satterthwaite's degrees of freedom of the variance of the mean, rounded down and at least S - 1.

    With one seed they are N - 1, and with two they are 1: from two seeds the formula can only guess how much seeds differ, and
    it called up to 11 % of equal settings different (docs/report.md).
    """
    seeds, videos = values_SN.shape
    if seeds <= 2:
        return videos - 1 if seeds == 1 else 1
    by_seed, by_video, rest = compute_mean_squares(values_SN)
    spread = by_seed**2 / (seeds - 1) + by_video**2 / (videos - 1) + rest**2 / ((seeds - 1) * (videos - 1))
    total = max(by_seed - rest, 0.0) + by_video
    freedom: float = total**2 / spread if spread else videos - 1
    return int(max(seeds - 1, freedom))


def compute_mcnemar_p(differences_N: Matrix) -> float:
    """Computes the exact two-sided p of McNemar's test of two classifiers on the same videos: a sign test of -1, 0 and 1."""
    ahead, behind = int((differences_N > 0).sum()), int((differences_N < 0).sum())
    return min(1.0, 2 * float(special.bdtr(min(ahead, behind), ahead + behind, 0.5)))


def adjust_by_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts p-values for the number of comparisons (Holm, 1979), so that ``ALPHA`` is the probability of any false positive.

    A p-value of None stays None and does not count as a comparison.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted


def describe_verdict(difference: Estimate, p: float | None) -> str:
    """Says in words what a difference from the baseline means, given its adjusted p."""
    if difference.seeds == 1:
        return "one seed: not distinguishable" if p is None or p > ALPHA else "one seed: the runs differ, the settings may not"
    if p is None or p > ALPHA:
        return f"not distinguishable at n = {difference.seeds}"
    return f"{'better' if difference.mean > 0 else 'worse'} (n = {difference.seeds})"


def format_p(p: float | None) -> str:
    """Formats a p-value as ``= 0.032`` or ``< 0.001``, or as a dash if it is None."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.0995 else f"= {p:.2f}"


def _compute_t_test_p(mean: float, error: float, freedom: int) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(freedom, -abs(mean) / error))
