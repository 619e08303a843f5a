"""Where a process computes."""

from __future__ import annotations

import torch

from pipeline.config import Config
from pipeline.hardware import check_hardware, read_hardware, uses_gpu


def own_device(config: Config) -> torch.device:
    """The GPU if this machine has one and ``scale.gpu`` does not forbid it, else the CPU; the one function that decides.

    Raises UserError if the GPU that ``scale.gpu=true`` asks for cannot be used, or lacks what the configuration needs.
    """
    hardware = read_hardware()
    gpu = uses_gpu(config, hardware)
    check_hardware(config, hardware, gpu)
    return torch.device("cuda" if gpu else "cpu")
