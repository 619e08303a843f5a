"""Which knob of a search moved the objective: each knob alone, with what chance alone would show.

The share of the variance of the objective's ranks that one knob explains: by a parabola over the knob's ranks for numbers, for
the best value often lies inside; eta squared for words. Both are 0..1, and of the knob alone: what two knobs do only together
is not seen. With few trials any knob explains something, so each has beside it what it stays below in 95 % of 1,000 random
permutations of the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.analysis.study_reader import Study, Trial

PERMUTATIONS = 1000
FEWEST = 5
"""Judged trials below which nothing is said."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """Of one knob."""

    key: str
    share: float
    """Of the variance of ranks, 0..1."""
    chance: float
    """What 95 % of permutations stay below."""


def judged(study: Study) -> list[Trial]:
    """Trials with a value of the leading objective, those stopped early included."""
    lead = study.objectives[0].name
    return [trial for trial in study.trials if trial.values.get(lead) is not None]


def searched_keys(study: Study) -> list[str]:
    """Keys whose values differ between trials, the seed aside."""
    keys = dict.fromkeys(key for trial in study.trials for key in trial.params if key != "run.seed")
    return [key for key in keys if len({repr(trial.params.get(key)) for trial in study.trials}) > 1]


def importances(study: Study) -> list[Importance]:
    """The most important first; empty below 5 judged trials. Trials that were stopped early count with their last value."""
    trials, lead = judged(study), study.objectives[0].name
    if len(trials) < FEWEST:
        return []
    values = ranks([trial.values[lead] or 0.0 for trial in trials])
    generator = np.random.default_rng(0)
    shuffled = np.array([generator.permutation(values) for _ in range(PERMUTATIONS)])
    found = []
    for key in searched_keys(study):
        design = _design([trial.params.get(key) for trial in trials])
        chance = float(np.quantile(explained(design, shuffled), 0.95))
        found.append(Importance(key, float(explained(design, values[None])[0]), chance))
    return sorted(found, key=lambda one: -one.share)


def ranks(values: Sequence[float]) -> Floats:
    """[n] from 0; equal values share the mean of their ranks."""
    return np.asarray(stats.rankdata(values) - 1, dtype=np.float64)


def is_number(value: Any) -> bool:
    """Whether a knob's value has an order; a bool has none worth speaking of."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _design(values: Sequence[Any]) -> Floats:
    """[n, k] orthonormal columns: the centered ranks of numbers and their squares, or what tells words apart."""
    if all(map(is_number, values)):
        rank = ranks([float(value) for value in values])
        columns = np.stack([rank, np.square(rank - rank.mean())], axis=1)
    else:
        names = sorted({repr(value) for value in values})
        columns = np.array([[float(repr(value) == name) for name in names] for value in values])
    centered = columns - columns.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    kept: Floats = left[:, sizes > 1e-9 * max(float(sizes.max()), 1e-30)]
    return kept


def explained(design: Floats, values: Floats) -> Floats:
    """[m] share of the variance of each row of ``values`` [m, n] that the columns explain."""
    centered = values - values.mean(axis=1, keepdims=True)
    whole = np.square(centered).sum(axis=1)
    part = np.square(centered @ design).sum(axis=1)
    found: Floats = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return found
