"""BatchNorm whose statistics are those of all workers' clips."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.methods.workers import world


def synchronize_norms(method: nn.Module, device: torch.device) -> nn.Module:
    """The method with every BatchNorm over all workers: torch's on a GPU, which it is limited to, ours elsewhere."""
    if device.type == "cuda":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return synchronized
    for module in method.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = BatchNormOverWorkers  # same parameters, buffers and names; another forward
    return method


class BatchNormOverWorkers(nn.BatchNorm3d):
    """Mean and variance over the clips of all workers, however many each has, with gradient through both."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """[N, C, T, H, W], normalized."""
        if not self.training or world() == 1:
            return super().forward(maps)
        rest, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = torch.tensor([maps.numel() / maps.shape[1]], device=maps.device)
        sums = _SumOverWorkers.apply(torch.cat([maps.float().sum(dim=rest), count]))
        total = sums[-1].detach()
        mean_C = sums[:-1] / total
        centered = maps - mean_C.view(shape)
        variance_C = _SumOverWorkers.apply(centered.float().square().sum(dim=rest)) / total
        self._follow(mean_C.detach(), variance_C.detach() * total / (total - 1))
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        normalized: torch.Tensor = centered * scale_C.view(shape) + self.bias.view(shape)
        return normalized

    @torch.no_grad()
    def _follow(self, mean_C: torch.Tensor, variance_C: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _SumOverWorkers(torch.autograd.Function):
    """Sum over workers; each worker's gradient is the sum of all workers' too."""

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
