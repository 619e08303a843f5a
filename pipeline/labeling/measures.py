"""How uncertain two students are about a clip, from their class probabilities; each measure is between 0 and 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MEASURES = ("disagreement", "entropy", "margin", "unfamiliar")


def compute_measures(primary_NK: Floats, auxiliary_NK: Floats) -> dict[str, Floats]:
    """Computes all of ``MEASURES``, [N] each, from the students' class probabilities [N, K] whose rows sum to 1."""
    mean = (primary_NK + auxiliary_NK) / 2
    return {
        "disagreement": compute_disagreement(primary_NK, auxiliary_NK),
        "entropy": compute_entropy(mean) / np.log(max(mean.shape[1], 2)),
        "margin": compute_margin(mean),
        "unfamiliar": 1 - mean.max(axis=1),
    }


def compute_entropy(probabilities_NK: Floats) -> Floats:
    """Computes the entropy [N] of each row, in nats."""
    logs = np.log(np.where(probabilities_NK > 0, probabilities_NK, 1.0))
    return np.asarray(-(probabilities_NK * logs).sum(axis=1))


def compute_disagreement(primary_NK: Floats, auxiliary_NK: Floats) -> Floats:
    """Computes the Jensen-Shannon divergence [N] of both students' probabilities, divided by its largest value, ln 2.

    It is 0 where they predict the same, and 1 where each is certain of another class. Added to the mean of both students'
    entropies it is the entropy of their mean (Lakshminarayanan et al., 2017, for ensembles).
    """
    mean = compute_entropy((primary_NK + auxiliary_NK) / 2)
    own = (compute_entropy(primary_NK) + compute_entropy(auxiliary_NK)) / 2
    return np.asarray(np.clip((mean - own) / np.log(2), 0, 1))


def compute_margin(probabilities_NK: Floats) -> Floats:
    """Computes 1 minus the difference [N] of the two largest probabilities: 1 where two classes are equally probable."""
    if probabilities_NK.shape[1] < 2:
        return np.zeros(len(probabilities_NK))
    two = np.partition(probabilities_NK, -2, axis=1)[:, -2:]
    return np.asarray(1 - (two[:, 1] - two[:, 0]))
