"""Strategies that choose which videos to label next. Each is a function of what the students think, and draws nothing but by
seed."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.labeling.measures import Floats
from pipeline.labeling.opinions import Opinions
from pipeline.seeds import Ints, draw_uniform

Strategy = Literal["mixed", "disagreement", "entropy", "margin", "unfamiliar", "unstable", "diverse", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DIVERSE: tuple[Strategy, ...] = ("mixed", "diverse")
"""Strategies that choose among a pool by the students' probabilities, and need a second pass over the scores."""
POOL = 10
"""``mixed`` chooses among so many times as many videos as are asked for, the most uncertain ones."""
MAX_POOL = 20_000
"""``diverse`` chooses among at most so many, drawn by seed."""
MIN_DISTANCE = 1e-5
"""Videos whose squared distance is less count as equal."""


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


def count_pool(strategy: Strategy, count: int, balanced: bool) -> int:
    """Returns among how many of the best-ranked videos ``count`` are chosen."""
    if strategy == "diverse":
        return max(MAX_POOL, count)
    return POOL * count if strategy == "mixed" or balanced else count


def choose_diverse(probabilities: Floats, weights: Floats, count: int, seed: int) -> list[int]:
    """Chooses ``count`` of C videos that are far from each other: the seeding of k-means++ (Arthur & Vassilvitskii, 2007).

    The first is the one of the largest weight; each further one is drawn with a probability proportional to its weight times
    its squared distance to the nearest chosen one. ``probabilities`` [C, 2, K] are the students' class probabilities, whose
    square roots are compared (Hellinger distance); ``weights`` [C] are 0 or more. Returns indices in the order of choice.
    """
    points = np.sqrt(probabilities, dtype=np.float32).reshape(len(probabilities), -1)
    lengths = (points**2).sum(axis=1)
    chosen = [int(np.argmax(weights))] if count and len(points) else []
    distance = np.full(len(points), np.inf)
    while len(chosen) < min(count, len(points)):
        last = chosen[-1]
        to_last = lengths + lengths[last] - 2 * (points @ points[last])
        distance = np.minimum(distance, np.where(to_last > MIN_DISTANCE, to_last, 0))
        distance[chosen] = 0
        mass = np.cumsum(np.maximum(weights, 0) * distance)
        if mass[-1] <= 0:  # all others are equal to a chosen one, or have no weight
            left = np.setdiff1d(np.arange(len(points)), chosen)
            return [*chosen, *map(int, left[: count - len(chosen)])]
        drawn = draw_uniform(seed, "k-means++", len(chosen)) * mass[-1]
        chosen.append(int(min(np.searchsorted(mass, drawn, side="right"), len(points) - 1)))
    return chosen


def choose_balanced(classes: NDArray[np.integer[Any]], count: int) -> Ints:
    """Chooses ``count`` of the ranked videos so that each predicted class has equally many, as far as there are any.

    ``classes`` are the predicted classes, best video first. Returns indices into them: the best of each class, then the second
    of each, and so on.
    """
    by_class = np.argsort(classes, kind="stable")
    sizes = np.unique(classes, return_counts=True)[1]
    turns = np.empty(len(classes), np.int64)
    turns[by_class] = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])
    return np.lexsort((np.arange(len(classes)), turns))[:count]
