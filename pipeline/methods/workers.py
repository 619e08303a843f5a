"""Tensors of all workers together, with and without gradient. One process without workers is a group of one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def world() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this worker, from 0."""
    return dist.get_rank() if world() > 1 else 0


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """[n, ...] of each worker -> [W n, ...] in order of rank, without gradient. Every worker must hold equally many."""
    if world() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(features: torch.Tensor) -> torch.Tensor:
    """The same with gradient: that of a worker's own part is the sum over all workers' losses, so that DDP's mean over
    workers of what it computes from the whole equals one worker with the whole batch."""
    return features if world() == 1 else _Gather.apply(features)


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the sum over workers; torch.distributed.nn's own is deprecated since torch 2.14."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        return gather(features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
