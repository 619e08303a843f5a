"""Estimates how much each knob of a search alone influenced the objective, and how much chance alone would show.

The importance of a knob is the share (0..1) of the variance of the objective's ranks that it explains. For numbers this is the
fit of a parabola over the knob's ranks, because the best value often lies inside the range; for words it is eta squared.
Effects that two knobs have only together are not seen. With few trials any knob explains something: each importance therefore
comes with the value that it stays below in 95 % of 1,000 random permutations of the objective. Optuna's importances have no
such value, and need Optuna, without which a report can be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.records.study_record import StudyRecord, TrialRecord

PERMUTATIONS = 1000
FEWEST = 5
"""With fewer judged trials than this, no importance is computed."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """How much one knob influenced the objective."""

    key: str
    share: float
    """The share of the variance of the objective's ranks that the knob explains, 0..1."""
    chance: float
    """The share that 95 % of the permutations stay below."""


def select_judged_trials(study: StudyRecord) -> list[TrialRecord]:
    """Selects the trials that have a value of the first objective, including those that were stopped early."""
    lead = study.objectives[0].name
    return [trial for trial in study.trials if trial.values.get(lead) is not None]


def find_searched_keys(study: StudyRecord) -> list[str]:
    """Finds the keys whose values differ between trials, apart from the seed."""
    keys = dict.fromkeys(key for trial in study.trials for key in trial.params if key != "run.seed")
    return [key for key in keys if len({repr(trial.params.get(key)) for trial in study.trials}) > 1]


def compute_importances(study: StudyRecord) -> list[Importance]:
    """Computes the importance of each searched knob, the most important first; empty with fewer than 5 judged trials.

    Trials that were stopped early count with their last value.
    """
    trials, lead = select_judged_trials(study), study.objectives[0].name
    if len(trials) < FEWEST:
        return []
    values = compute_ranks([trial.values[lead] or 0.0 for trial in trials])
    generator = np.random.default_rng(0)
    shuffled = np.array([generator.permutation(values) for _ in range(PERMUTATIONS)])
    importances = []
    for key in find_searched_keys(study):
        design = _build_design_matrix([trial.params.get(key) for trial in trials])
        chance = float(np.quantile(compute_explained_share(design, shuffled), 0.95))
        importances.append(Importance(key, float(compute_explained_share(design, values[None])[0]), chance))
    return sorted(importances, key=lambda importance: -importance.share)


def compute_ranks(values: Sequence[float]) -> Floats:
    """Returns the ranks [n] of ``values`` from 0 on; equal values have the mean of their ranks."""
    from scipy import stats  # takes half a second to import, and few reports need it

    return np.asarray(stats.rankdata(values) - 1, dtype=np.float64)


def is_number(value: Any) -> bool:
    """Returns whether the value of a knob has an order; a bool is not treated as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _build_design_matrix(values: Sequence[Any]) -> Floats:
    """Returns orthonormal columns [n, k]: of numbers the centered ranks and their squares, of words an indicator for each
    word."""
    if all(map(is_number, values)):
        rank = compute_ranks([float(value) for value in values])
        columns = np.stack([rank, np.square(rank - rank.mean())], axis=1)
    else:
        names = sorted({repr(value) for value in values})
        columns = np.array([[float(repr(value) == name) for name in names] for value in values])
    centered = columns - columns.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    basis: Floats = left[:, sizes > 1e-9 * max(float(sizes.max()), 1e-30)]
    return basis


def compute_explained_share(design: Floats, values: Floats) -> Floats:
    """Computes for each row of ``values`` [m, n] the share [m] of its variance that the columns of ``design`` explain."""
    centered = values - values.mean(axis=1, keepdims=True)
    total = np.square(centered).sum(axis=1)
    explained = np.square(centered @ design).sum(axis=1)
    shares: Floats = np.divide(explained, total, out=np.zeros(len(total)), where=total > 0)
    return shares
