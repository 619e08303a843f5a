"""Tensors of all workers together, with and without gradient. One process without workers is a group of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def world() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this worker, from 0."""
    return dist.get_rank() if world() > 1 else 0


_rows_of: list[int] = []
"""Rows of a step for each worker, if they differ: a fact of the process group, and kept beside it."""


def set_shares(rows: Sequence[int]) -> None:
    """Say how many rows of a step each worker has; without this they are taken to have equally many."""
    _rows_of[:] = rows if len(set(rows)) > 1 else []


def sizes(count: int) -> list[int]:
    """How many of something each worker has, when this one has ``count`` of them: in proportion to their rows."""
    if not _rows_of:
        return [count] * world()
    assert len(_rows_of) == world() and count % _rows_of[rank()] == 0
    return [count // _rows_of[rank()] * rows for rows in _rows_of]


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """[n, ...] of each worker -> [sum of n, ...] in order of rank, without gradient."""
    if world() == 1:
        return tensor.detach()
    counts = sizes(len(tensor))
    sent = tensor.detach().contiguous()
    if len(tensor) < max(counts):  # collectives want equal sizes
        sent = torch.cat([sent, sent.new_zeros((max(counts) - len(tensor), *tensor.shape[1:]))])
    parts = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(parts, sent)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_with_gradient(features: torch.Tensor) -> torch.Tensor:
    """The same with gradient: that of a worker's own part is the sum over all workers' losses, so that DDP's mean over
    workers of what it computes from the whole equals one worker with the whole batch, if each loss counts by its rows."""
    return features if world() == 1 else _Gather.apply(features)


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the sum over workers; torch.distributed.nn's own is deprecated since torch 2.14."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        ctx.counts = sizes(len(features))
        return gather(features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own: torch.Tensor = total.split(ctx.counts)[dist.get_rank()]
        return own
