"""Strategies that choose which videos to label next. Each is a function of what the students think, and draws nothing but by
seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from pipeline.labeling.measures import Floats
from pipeline.labeling.opinions import Opinions
from pipeline.seeds import Ints, draw_uniform

Strategy = Literal["mixed", "disagreement", "entropy", "margin", "unstable", "diverse", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DIVERSE: tuple[Strategy, ...] = ("mixed", "diverse")
"""Strategies that choose among a pool by the students' probabilities, and need a second pass over the scores."""
POOL = 10
"""``mixed`` chooses among so many times as many videos as are asked for, the most uncertain ones."""
MAX_POOL = 20_000
"""``diverse`` chooses among so many at the most, drawn by seed."""


def rank_videos(strategy: Strategy, opinions: Opinions, candidates: Ints, seed: int) -> tuple[Ints, Floats]:
    """Returns the candidates (rows of the manifest), best first, and the score of each, 0..1: the most uncertain are best.

    ``mixed`` ranks by entropy, ``diverse`` and ``random`` by chance. Equal scores are ordered by chance.
    """
    chance = draw_uniform(seed, "suggestion", candidates)
    if strategy in ("diverse", "random"):
        scores = chance
    elif strategy == "unstable":
        scores = np.nan_to_num(opinions.changes[candidates].astype(np.float64))
    else:
        scores = opinions.measures["entropy" if strategy == "mixed" else strategy][candidates].astype(np.float64)
    order = np.lexsort((chance, -scores))
    return candidates[order], scores[order]


def count_pool(strategy: Strategy, count: int) -> int:
    """Returns among how many of the best-ranked videos ``choose_diverse`` chooses ``count``."""
    return POOL * count if strategy == "mixed" else MAX_POOL


def choose_diverse(probabilities: Floats, weights: Floats, count: int, seed: int) -> list[int]:
    """Chooses ``count`` of C videos that are far from each other: the seeding of k-means++ (Arthur & Vassilvitskii, 2007).

    The first is the one of the largest weight; each further one is drawn with a probability proportional to its weight times
    its squared distance to the nearest chosen one. ``probabilities`` [C, 2, K] are the students' class probabilities, whose
    square roots are compared (Hellinger distance); ``weights`` [C] are 0 or more. Returns indices in the order of choice.
    """
    points = np.sqrt(probabilities).reshape(len(probabilities), -1)
    chosen = [int(np.argmax(weights))] if count and len(points) else []
    distance = np.full(len(points), np.inf)
    while len(chosen) < min(count, len(points)):
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen] = 0
        mass = np.cumsum(np.maximum(weights, 0) * distance)
        if mass[-1] <= 0:  # all others are equal to a chosen one, or have no weight
            left = np.setdiff1d(np.arange(len(points)), chosen)
            return [*chosen, *map(int, left[: count - len(chosen)])]
        drawn = draw_uniform(seed, "k-means++", len(chosen)) * mass[-1]
        chosen.append(int(min(np.searchsorted(mass, drawn, side="right"), len(points) - 1)))
    return chosen


def choose_balanced(ranked: Sequence[int], classes: Sequence[int], count: int) -> list[int]:
    """Chooses ``count`` of the ranked videos so that each predicted class has equally many, as far as there are any.

    ``classes`` are the predicted classes in the order of ``ranked``. Returns indices into ``ranked``, best first.
    """
    taken: Counter[int] = Counter()
    turns = []
    for index, label in enumerate(classes):
        turns.append((taken[label], index))
        taken[label] += 1
    return [index for _, index in sorted(turns)[:count]]
