"""Computes the ratios and rates that benchmarks report, and prepares their configurations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.clips.plan import BlockLayout
from pipeline.config import TERMS, Config
from pipeline.errors import UserError

MIN_BLOCKS = 8
"""The number of blocks that each consumer needs in a repeat: two are start-up, and fewer than six more give a chance rate."""


def compute_ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Computes the ratio above / below of every repeat.

    Both values of a repeat are measured one right after the other, so that a machine that grows slower affects both alike.

    Returns:
        The median under ``name`` and as ``median``, the number of repeats as ``n``, and the smallest and largest ratio as
        ``spread``.
    """
    assert "ratio" in name
    values = [round(one / other, 4) for one, other in zip(above, below, strict=True)]
    median = round(statistics.median(values), 4)
    return {name: median, "n": len(values), "median": median, "spread": [min(values), max(values)]}


def configure_bench(config: Config, steps: int) -> Config:
    """Returns the configuration with ``steps`` steps, all of which use unlabeled videos: no loss term starts later."""
    train = config.train.model_copy(update={"steps": steps})
    terms = {name: getattr(config.method, name).model_copy(update={"start": 0}) for name in TERMS}
    method = config.method.model_copy(update={"supervised_steps": 0, **terms})
    return config.model_copy(update={"train": train, "method": method})


def configure_quick(config: Config) -> Config:
    """Returns the configuration for ``--quick``: a step has two labeled videos at most and is a block, in this process."""
    data = config.data.model_copy(update={"labeled_per_step": min(2, config.data.labeled_per_step), "clips_per_block": 1})
    scale = config.scale.model_copy(update={"workers": 0, "min_workers": None})
    return config.model_copy(update={"data": data, "scale": scale})


def check_steps(steps: int, per_block: int) -> None:
    """Raises UserError if ``steps`` are too few blocks of ``per_block`` steps for a steady state."""
    if steps < MIN_BLOCKS * per_block:
        raise UserError(f"--steps {steps}: at least {MIN_BLOCKS * per_block}, {MIN_BLOCKS} blocks, are a steady state")


def compute_steady_rate(consumers: Sequence[Sequence[float]], size: int, layout: BlockLayout | None = None) -> float:
    """Computes the rate of all consumers together, without the first quarter of each one's arrivals, which is start-up.

    The batches of a block of ``layout`` arrive at once, so only the first one counts. Blocks arrive in waves, as many as are
    decoded together. The rate is therefore the slope of the line through all of them: that between two single blocks would
    depend on where in its wave each of them lies.

    Args:
        consumers: For each consumer, the times of its arrivals in seconds.
        size: The number of items that one arrival brings.
        layout: The blocks; None if every batch arrives by itself.

    Returns:
        Items per second.
    """
    rate = 0.0
    for times in consumers:
        firsts = list(range(len(times))) if layout is None else layout.find_first_batches(len(times))
        steady = [index for index in firsts if index >= len(times) // 4]
        rate += size * float(np.polyfit(np.asarray(times)[steady] - times[0], steady, 1)[0])
    return rate
