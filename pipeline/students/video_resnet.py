"""3-D ResNet-18 and R(2+1)D-18 (Tran et al., CVPR 2018) of torchvision, which related methods use."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import VideoResNetSection


class VideoResNet(nn.Module):
    """Time is strided by 8 together with space; 33.17 M (r3d_18) or 31.30 M (r2plus1d_18) parameters without the head."""

    def __init__(self, section: VideoResNetSection, num_classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model  # takes 3 s, which other students do not need

        self.per_frame = False
        self.arch = section.arch
        self.network = get_model(section.arch, weights=None)
        self.num_features = int(self.network.fc.in_features)
        self.network.fc = nn.Identity()
        self.dropout = nn.Dropout(section.dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)  # confidence starts at chance, as with the other students
        nn.init.zeros_(self.head.bias)

    def forward(self, clips_NCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes logits [N, K] and features [N, 512] from normalized clips; with ``per_frame`` the features are [N, T / 8,
        512]."""
        net = self.network
        maps = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(clips_NCTHW)))))
        features_ND = maps.mean(dim=(2, 3, 4))
        logits_NK = self.head(self.dropout(features_ND))
        return logits_NK, maps.mean(dim=(3, 4)).transpose(1, 2) if self.per_frame else features_ND
