"""Slow pathway ResNet, SlowFast's "SlowOnly" (Feichtenhofer et al., ICCV 2019, Table 1, without the Fast pathway).

Time is never strided: T frames go in and T maps come out, to be averaged. Temporal kernels exist only in res4 and res5
(the SlowFast paper: earlier ones degrade accuracy), so the first half of the network looks at single frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipeline.config import SlowResNetSection

Norm = Callable[[int], nn.BatchNorm3d | nn.GroupNorm]

BLOCKS = {
    10: (1, 1, 1, 1), 14: (1, 1, 1, 1), 18: (2, 2, 2, 2), 26: (2, 2, 2, 2),
    34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
}  # fmt: skip
"""The numbers of residual blocks in res2, res3, res4 and res5, by depth."""
BASIC_DEPTHS = (10, 18, 34)
TEMPORAL_STAGES = (False, False, True, True)


class SlowResNet(nn.Module):
    """The paper's primary student at depth 50: 31.634 M parameters and a head of 2048 K + K."""

    def __init__(self, section: SlowResNetSection, num_classes: int) -> None:
        super().__init__()
        norm, width = NORMS[section.norm], section.width
        self.per_frame = False
        kind = BasicBlock if section.depth in BASIC_DEPTHS else Bottleneck
        self.stem = nn.Sequential(_build_conv(3, width, (1, 7, 7), stride=2), norm(width), nn.ReLU(inplace=True))
        self.pool = FramePool()
        stages: list[BasicBlock | Bottleneck] = []
        channels = width
        for stage, (blocks, temporal) in enumerate(zip(BLOCKS[section.depth], TEMPORAL_STAGES, strict=True)):
            inner, kernel = width * 2**stage, section.temporal_kernel if temporal else 1
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                stages.append(kind(channels, inner, kernel, stride, norm))
                channels = inner * kind.expansion
        self.blocks = nn.Sequential(*stages)
        self.num_features = channels
        self.dropout = nn.Dropout(section.dropout)
        self.head = nn.Linear(channels, num_classes)
        self.apply(_initialize)

    def forward(self, clips_NCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes logits [N, K] and features [N, D] from normalized clips; features are the mean over time and space before
        dropout.

        With ``per_frame`` the features are [N, T, D], the mean over space.
        """
        maps = self.blocks(self.pool(self.stem(clips_NCTHW)))
        features_ND = maps.mean(dim=(2, 3, 4))
        logits_NK = self.head(self.dropout(features_ND))
        return logits_NK, maps.mean(dim=(3, 4)).transpose(1, 2) if self.per_frame else features_ND


class FramePool(nn.Module):
    """Computes 3x3 maxima of each frame with stride 2, in two dimensions.

    MaxPool3d would give the same. But its gradient on a GPU adds with atomics, which is slow, most of all in bf16, and has no
    fixed order of sums, so torch's deterministic mode refuses it.
    """

    def forward(self, maps_NCTHW: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, T, H, W] to [N, C, T, H / 2, W / 2], rounded up, in the same memory format."""
        # torch.compile's traced convolutions claim to be contiguous
        if maps_NCTHW.is_contiguous() and not torch.compiler.is_compiling():
            return torch.unflatten(_halve(maps_NCTHW.flatten(1, 2)), 1, maps_NCTHW.shape[1:3])
        frames = maps_NCTHW.transpose(1, 2)  # of channels_last_3d each frame is channels_last: nothing is copied
        return torch.unflatten(_halve(frames.flatten(0, 1)), 0, frames.shape[:2]).transpose(1, 2)


def _halve(maps: torch.Tensor) -> torch.Tensor:
    halved: torch.Tensor = nn.functional.max_pool2d(maps, 3, stride=2, padding=1)
    return halved


class Bottleneck(nn.Module):
    """A residual block of (kernel)x1x1, 1x3x3 with the spatial stride, and 1x1x1 to four times the channels."""

    expansion = 4

    def __init__(self, channels: int, inner: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outer = inner * self.expansion
        self.residual = nn.Sequential(
            _build_conv(channels, inner, (kernel, 1, 1)), norm(inner), nn.ReLU(inplace=True),
            _build_conv(inner, inner, (1, 3, 3), stride), norm(inner), nn.ReLU(inplace=True),
            _build_conv(inner, outer, (1, 1, 1)), norm(outer),
        )  # fmt: skip
        self.shortcut = _build_shortcut(channels, outer, stride, norm)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(maps) + self.shortcut(maps))


class BasicBlock(nn.Module):
    """A residual block of (kernel)x3x3 with the spatial stride, then 1x3x3, as SlowFast's basic transform."""

    expansion = 1

    def __init__(self, channels: int, inner: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _build_conv(channels, inner, (kernel, 3, 3), stride), norm(inner), nn.ReLU(inplace=True),
            _build_conv(inner, inner, (1, 3, 3)), norm(inner),
        )  # fmt: skip
        self.shortcut = _build_shortcut(channels, inner, stride, norm)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(maps) + self.shortcut(maps))


def _build_conv(channels: int, outer: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    depth, height, width = (side // 2 for side in kernel)
    padding = (depth, height, width)
    return nn.Conv3d(channels, outer, kernel, stride=(1, stride, stride), padding=padding, bias=False)


def _build_shortcut(channels: int, outer: int, stride: int, norm: Norm) -> nn.Module:
    if channels == outer and stride == 1:
        return nn.Identity()
    return nn.Sequential(_build_conv(channels, outer, (1, 1, 1), stride), norm(outer))


def _build_group_norm(channels: int) -> nn.GroupNorm:
    groups = channels // 8 if channels % 8 == 0 else 1  # widths that 8 does not divide: one group
    return nn.GroupNorm(groups, channels)


def _build_batch_norm(channels: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(channels)


NORMS: dict[str, Norm] = {"batch": _build_batch_norm, "group": _build_group_norm}


def _initialize(module: nn.Module) -> None:
    """He initialization by outgoing channels, and a head near 0 (SlowFast's 0.01), so that confidence starts at chance.

    Not SlowFast's last norms at 0: time is mixed in the residual branches only, which that shuts at the start. It kept depth
    10, width 16 at chance on motion for 200 steps (11 %; 41 % without; 1 seed).
    """
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
