from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.methods.parts.ema import move_toward


class Calls(TorchDispatchMode):
    """Names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def network(seed: int, depth: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(*(nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), nn.BatchNorm3d(3)) for _ in range(depth)))
    made(torch.randn(2, 3, 4, 4, 4))
    return made.to(memory_format=torch.channels_last_3d)


def test_means_move_by_the_decay_and_statistics_are_copied() -> None:
    means, module = network(0), network(1)
    pairs = list(zip(means.parameters(), module.parameters(), strict=True))
    wanted = [mine.detach().clone().lerp_(its.detach(), 1 - 0.7) for mine, its in pairs]
    move_toward(means, module, 0.7)
    assert all(torch.equal(mine, one) for mine, one in zip(means.parameters(), wanted, strict=True))
    assert all(torch.equal(mine, its) for mine, its in zip(means.buffers(), module.buffers(), strict=True))


def test_as_many_calls_for_many_tensors_as_for_few() -> None:
    counts = []
    for depth in (1, 10):
        means, module = network(0, depth), network(1, depth)
        with Calls() as calls:
            move_toward(means, module, 0.7)
        counts.append(len(calls.names))
    assert counts == [3, 3]  # parameters, floats of BatchNorm, its counts of batches
