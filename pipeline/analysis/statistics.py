"""How far a number would move with other seeds and other test videos, and whether two settings can be told apart.

A matrix [S, N] holds S runs (seeds) x N test videos: 1 where the video was recognized and 0 where not, or the difference of
two such matrices of the same seeds and the same videos. Seeds and videos both are samples, and crossed: every seed sees the
same videos. So the variance of the mean has three parts (Searle, Casella & McCulloch, Variance Components, 1992),

    var = seeds / S + videos / N + rest / (S N),

and an interval over videos alone would hold for these very runs only. Nothing is read here, and what is drawn
is drawn from constant seeds, so the same runs give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.metrics import mean_and_sd

Matrix = NDArray[np.floating[Any]]
DRAWS = 1000
"""Bootstrap draws: the standard error is then known to 1 / sqrt(2 x 1000) = 2 %."""
ALPHA = 0.05
"""Probability to call two equal settings different, over all comparisons of a column together (Holm)."""
Over = Literal["seeds and videos", "videos", "seeds", "nothing"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty, in the unit of the values."""

    mean: float
    sd: float | None
    """Sample standard deviation over the seeds; None with one seed."""
    seeds: int
    """n."""
    low: float | None
    """Ends of the 95 % interval; None where nothing is known of the spread."""
    high: float | None
    over: Over
    """What is drawn again in the interval: with ``videos`` alone another seed may fall outside."""
    p: float | None
    """Two-sided probability of a mean at least that far from 0 if the true one is 0; None where it cannot be told."""

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high)[:: 1 if factor > 0 else -1])
        sd = None if self.sd is None else self.sd * abs(factor)
        return Estimate(self.mean * factor, sd, self.seeds, low, high, self.over, self.p)


def estimate(values_SN: Matrix) -> Estimate:
    """Mean over seeds and videos; its interval by bootstrap over both, its p by the same standard error.

    Videos are drawn again, and so are S - 1 of the seeds (so that the spread is not too small by (S - 1) / S), whose effects
    are first shrunk to what the noise of single videos does not explain: it would count twice. The standard error times
    Student's t with Satterthwaite's degrees of freedom gives the interval: 3 seeds are not 30. With one seed the videos alone
    are drawn, and p is exact (McNemar) where the values are differences of right and wrong.
    """
    assert values_SN.ndim == 2 and values_SN.size, f"values must be [S, N], got {values_SN.shape}"
    seeds, videos = values_SN.shape
    if videos == 1:
        return over_seeds(values_SN[:, 0].tolist())
    mean, sd = float(values_SN.mean()), mean_and_sd(values_SN.mean(axis=1).tolist()).sd
    error = float(np.std(bootstrap(values_SN), ddof=1))
    margin = float(stats.t.isf(ALPHA / 2, degrees_of_freedom(values_SN))) * error
    over: Over = "seeds and videos" if seeds > 1 else "videos"
    p = _p(mean, error, degrees_of_freedom(values_SN)) if seeds > 1 else mcnemar(values_SN[0])
    return Estimate(mean, sd, seeds, mean - margin, mean + margin, over, p)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Of one number per seed, where the single videos are unknown: Student's t over the seeds."""
    mean, sd, seeds = mean_and_sd(values)
    if sd is None:
        return Estimate(mean, None, seeds, None, None, "nothing", None)
    error = sd / math.sqrt(seeds)
    margin = float(stats.t.isf(ALPHA / 2, seeds - 1)) * error
    return Estimate(mean, sd, seeds, mean - margin, mean + margin, "seeds", _p(mean, error, seeds - 1) if sd else None)


def bootstrap(values_SN: Matrix, draws: int = DRAWS) -> NDArray[np.float64]:
    """[draws] means of ``estimate``'s bootstrap."""
    seeds, videos = values_SN.shape
    generator = np.random.default_rng(0)
    columns = values_SN.mean(axis=0)
    means = np.array([columns[generator.integers(videos, size=videos)].mean() for _ in range(draws)])
    if seeds == 1:
        return means
    by_seed, _, rest = mean_squares(values_SN)
    effects = (values_SN.mean(axis=1) - values_SN.mean()) * math.sqrt(max(0.0, 1 - rest / by_seed) if by_seed else 0.0)
    again: NDArray[np.float64] = means + effects[generator.integers(seeds, size=(draws, seeds - 1))].mean(axis=1)
    return again


def mean_squares(values_SN: Matrix) -> tuple[float, float, float]:
    """Of seeds, of videos and of the rest, in a two-way layout without repetition; S and N at least 2."""
    seeds, videos = values_SN.shape
    rows, columns, mean = values_SN.mean(axis=1), values_SN.mean(axis=0), values_SN.mean()
    rest = values_SN - rows[:, None] - columns[None] + mean
    return (
        float(videos * np.square(rows - mean).sum() / (seeds - 1)),
        float(seeds * np.square(columns - mean).sum() / (videos - 1)),
        float(np.square(rest).sum() / ((seeds - 1) * (videos - 1))),
    )


def degrees_of_freedom(values_SN: Matrix) -> int:
    """Satterthwaite's of the variance of the mean, rounded down, at least S - 1; N - 1 with one seed.

    With two seeds it is 1: the formula, which has to guess from two how much seeds differ, called up to 11 % of equal settings
    different (docs/report.md).
    """
    seeds, videos = values_SN.shape
    if seeds <= 2:
        return videos - 1 if seeds == 1 else 1
    by_seed, by_video, rest = mean_squares(values_SN)
    spread = by_seed**2 / (seeds - 1) + by_video**2 / (videos - 1) + rest**2 / ((seeds - 1) * (videos - 1))
    whole = max(by_seed - rest, 0.0) + by_video
    freedom: float = whole**2 / spread if spread else videos - 1
    return int(max(seeds - 1, freedom))


def mcnemar(differences_N: Matrix) -> float:
    """Exact two-sided sign test of -1, 0, 1: McNemar's, of two classifiers on the same videos."""
    ahead, behind = int((differences_N > 0).sum()), int((differences_N < 0).sum())
    return float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted for many comparisons (Holm, 1979): each at most ``ALPHA`` is then true together with probability 1 - ``ALPHA``.

    What cannot be told (None) stays so, and is no comparison.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted


def verdict(difference: Estimate, p: float | None) -> str:
    """In words what a difference from the baseline says, by its adjusted p."""
    if difference.seeds == 1:
        return "one seed: not distinguishable" if p is None or p > ALPHA else "one seed: the runs differ, the settings may not"
    if p is None or p > ALPHA:
        return f"not distinguishable at n = {difference.seeds}"
    return f"{'better' if difference.mean > 0 else 'worse'} (n = {difference.seeds})"


def p_text(p: float | None) -> str:
    """``= 0.032``, ``< 0.001``, or a dash."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.0995 else f"= {p:.2f}"


def _p(mean: float, error: float, freedom: int) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))
