"""Learning rates and loss weights as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from pipeline.config import TrainSection


def compute_lr_factor(step: int, train: TrainSection) -> float:
    """Computes the share of the peak learning rate at a step (from 0): after a linear warm-up a cosine to 0 at ``train.steps``,
    or 1, then 0.1 from the first milestone on, 0.01 from the second, and so on.

    The paper says SGD for 250 epochs and no more; warm-up and schedule are choice.
    """
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "step":
        return float(0.1 ** sum(step >= milestone for milestone in train.milestones))
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
