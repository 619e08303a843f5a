"""Gives BatchNorm the statistics of all workers' clips.

torch.nn.SyncBatchNorm exchanges the workers' counts and drops empty ones by a mask, which has every layer wait for the device
three times; here the counts are known, because a rule says how many rows each worker has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.collectives import count_on_workers, get_world_size


def synchronize_norms(method: nn.Module) -> nn.Module:
    """Changes every BatchNorm of the method, in place, to one over all workers; returns the method."""
    for module in method.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = BatchNormOverWorkers  # same parameters, buffers and names; another forward
    return method


class BatchNormOverWorkers(nn.BatchNorm3d):
    """BatchNorm with mean and variance over the clips of all workers, however many each has, and gradient through both."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalizes [N, C, T, H, W] and returns it in the same type; sums are computed in fp32."""
        if not self.training or get_world_size() == 1:
            return super().forward(maps)
        rest, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        total = sum(count_on_workers(len(maps))) * maps[0, 0].numel()  # values of a channel, of all workers
        mean_C = _SumOverWorkers.apply(maps.float().sum(dim=rest)) / total
        centered = maps.float() - mean_C.view(shape)
        variance_C = _SumOverWorkers.apply(centered.square().sum(dim=rest)) / total
        self._update_running_statistics(mean_C.detach(), variance_C.detach() * total / (total - 1))
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        normalized: torch.Tensor = centered * scale_C.view(shape) + self.bias.view(shape)
        return normalized.to(maps.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean_C: torch.Tensor, variance_C: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _SumOverWorkers(torch.autograd.Function):
    """Adds up over workers; the gradient of each is the sum over workers, too."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
