"""Combines the tensors of all workers, with and without gradient. A process without workers is a group of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def get_world_size() -> int:
    """Returns the number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Returns the number of this worker, from 0."""
    return dist.get_rank() if get_world_size() > 1 else 0


_rows_of: list[int] = []
"""The rows of a step on each worker, if they differ; kept here because they belong to the process group, of which there is
one."""


def set_worker_rows(rows: Sequence[int]) -> None:
    """Sets how many rows of a step each worker has; until then they are taken to have equally many."""
    _rows_of[:] = rows if len(set(rows)) > 1 else []


def count_on_workers(count: int) -> list[int]:
    """Computes how many of something each worker has if this one has ``count`` of them, in proportion to their rows."""
    if not _rows_of:
        return [count] * get_world_size()
    assert len(_rows_of) == get_world_size() and count % _rows_of[get_rank()] == 0
    return [count // _rows_of[get_rank()] * rows for rows in _rows_of]


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates the workers' [n, ...] to [sum of n, ...] in order of rank, without gradient."""
    if get_world_size() == 1:
        return tensor.detach()
    counts = count_on_workers(len(tensor))
    sent = tensor.detach().contiguous()
    if len(tensor) < max(counts):  # collectives want equal sizes
        sent = torch.cat([sent, sent.new_zeros((max(counts) - len(tensor), *tensor.shape[1:]))])
    parts = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(parts, sent)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_with_gradient(features: torch.Tensor) -> torch.Tensor:
    """Concatenates as ``gather`` does, with gradient.

    The gradient of a worker's own part is the sum over all workers' losses. So if each loss counts by the worker's rows, DDP's
    mean of gradients over workers equals the gradient of one worker that has the whole batch.
    """
    return features if get_world_size() == 1 else _Gather.apply(features)


class _Gather(torch.autograd.Function):
    """An all-gather whose gradient is the sum over workers; that of torch.distributed.nn is deprecated since torch 2.14."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        ctx.counts = count_on_workers(len(features))
        return gather(features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own: torch.Tensor = total.split(ctx.counts)[dist.get_rank()]
        return own
