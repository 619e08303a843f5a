"""A sequence of strided 3-D convolutions: a small student for small videos, after C3D (Tran et al., ICCV 2015)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from pipeline.config import PlainConv3dSection
from pipeline.students.slow_resnet import NORMS


class PlainConv3d(nn.Module):
    """0.66 M parameters at the defaults: 4 layers of 24, 48, 96 and 192 channels, which leave 1/8 of time and 1/16 of space."""

    def __init__(self, section: PlainConv3dSection, num_classes: int) -> None:
        super().__init__()
        channels = [3, *(section.width * 2**layer for layer in range(section.layers))]
        layers: list[nn.Module] = []
        for layer, (entering, leaving) in enumerate(pairwise(channels)):
            stride = (1 if layer == 0 else 2, 2, 2)
            convolution = nn.Conv3d(entering, leaving, kernel_size=3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, NORMS[section.norm](leaving), nn.ReLU(inplace=True)]
        self.per_frame = False
        self.layers = nn.Sequential(*layers)
        self.num_features = channels[-1]
        self.dropout = nn.Dropout(section.dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)  # confidence starts at chance, as with the other students
        nn.init.zeros_(self.head.bias)

    def forward(self, clips_NCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes logits [N, K] and features [N, D] from normalized clips; features are the mean over time and space before
        dropout.

        With ``per_frame`` the features are [N, L, D], the mean over space of each of the L moments that the strides in time
        leave.
        """
        maps = self.layers(clips_NCTHW)
        features_ND = maps.mean(dim=(2, 3, 4))
        logits_NK = self.head(self.dropout(features_ND))
        return logits_NK, maps.mean(dim=(3, 4)).transpose(1, 2) if self.per_frame else features_ND
