"""Where a run computes in one process."""

from __future__ import annotations

import torch

from pipeline.config import Config


def own_device(config: Config) -> torch.device:
    """The GPU if this machine has one and ``scale.gpu`` does not forbid it, else the CPU."""
    return torch.device("cuda" if config.scale.gpu is not False and torch.cuda.is_available() else "cpu")
