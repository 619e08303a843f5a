"""What benchmarks report: every ratio with its n, median and spread beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.clips.plan import BlockLayout
from pipeline.config import TERMS, Config
from pipeline.errors import UserError

LEAST_BLOCKS = 8
"""Of each consumer in a repeat: two are start-up, and rates of fewer than six are those of chance."""


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """``name``: median of above / below, one of each from every repeat, so that a drifting machine hits both alike.

    ``n``, ``median`` and ``spread``, smallest and largest, lie beside it.
    """
    assert "ratio" in name
    values = [round(one / other, 4) for one, other in zip(above, below, strict=True)]
    median = round(statistics.median(values), 4)
    return {name: median, "n": len(values), "median": median, "spread": [min(values), max(values)]}


def for_bench(config: Config, steps: int) -> Config:
    """The same run of ``steps`` steps, all of which use unlabeled videos: no term starts later."""
    train = config.train.model_copy(update={"steps": steps})
    terms = {name: getattr(config.method, name).model_copy(update={"start": 0}) for name in TERMS}
    method = config.method.model_copy(update={"supervised_steps": 0, **terms})
    return config.model_copy(update={"train": train, "method": method})


def small(config: Config) -> Config:
    """For ``--quick``: steps of two labeled videos at most, each a block of its own, in this process."""
    data = config.data.model_copy(update={"labeled_per_step": min(2, config.data.labeled_per_step), "clips_per_block": 1})
    scale = config.scale.model_copy(update={"workers": 0, "min_workers": None})
    return config.model_copy(update={"data": data, "scale": scale})


def check_steps(steps: int, per_block: int) -> None:
    """Raises UserError if so many steps are too few blocks for a steady state."""
    if steps < LEAST_BLOCKS * per_block:
        raise UserError(f"--steps {steps}: at least {LEAST_BLOCKS * per_block}, {LEAST_BLOCKS} blocks, are a steady state")


def steady_rate(consumers: Sequence[Sequence[float]], each: int, layout: BlockLayout | None = None) -> float:
    """Rate of all consumers together after the first quarter of each one's arrivals, which is start-up.

    Every arrival brings ``each``; those of a block of ``layout`` come at once, so only its first one counts. Blocks come in
    waves, as many as are decoded together: the rate is the slope of the line through all of them, because that of a span from
    one block to another would depend on where in its wave each of the two lies.
    """
    rate = 0.0
    for times in consumers:
        firsts = list(range(len(times))) if layout is None else layout.first_batches(len(times))
        steady = [index for index in firsts if index >= len(times) // 4]
        rate += each * float(np.polyfit(np.asarray(times)[steady] - times[0], steady, 1)[0])
    return rate
