"""TimeSformer (Bertasius et al., ICML 2021) on timm's ViT blocks: divided space-time, joint space-time, or space attention.

Shape letters beyond batch.py's: L tubelets in time (frames / tubelet), P patches of a frame, D embedding width.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ClipSection, TimeSformerSection
from pipeline.processes.garbage import exempt_imports

# timm is imported where a network is built: importing it takes 3 s of a CPU, and most commands and processes build none
if TYPE_CHECKING:
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

EPSILON = 1e-6
"""Of layer norms: that of timm's ``LayerNorm``."""


class TimeSformer(nn.Module):
    """The paper's auxiliary student at width 384, depth 12, 6 heads and patch 16: 30.55 M parameters without its head."""

    def __init__(self, section: TimeSformerSection, clip: ClipSection, num_classes: int) -> None:
        super().__init__()
        _import_timm()
        width = section.width
        self.attention = section.attention
        self.per_frame = False
        self.num_features = width
        self.patches: nn.Module = _patches(section) if section.stem == "patch" else _convolutions(section)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + (clip.size // section.patch) ** 2, width))
        self.has_time = section.attention != "space"  # frames that never meet need no embedding of time
        if self.has_time:
            self.time_embedding = nn.Parameter(torch.zeros(1, clip.frames // section.tubelet, width))
        rates = [section.drop_path * number / max(1, section.depth - 1) for number in range(section.depth)]
        block = DividedBlock if section.attention == "divided" else _build_vit_block
        self.blocks = nn.ModuleList(block(width, section.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.dropout = nn.Dropout(section.dropout)
        self.head = nn.Linear(width, num_classes)
        self._initialize()

    def forward(self, clips_NCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes logits [N, K] and features [N, D] from normalized clips; features are the normalized cls token before
        dropout.

        With ``per_frame`` the features are [N, L, D], the mean of each frame's normalized patches. For clips of another length
        or size than the student was built for, the embeddings are interpolated.
        """
        maps_NDLHW = self.patches(clips_NCTHW)
        patches_NLPD = maps_NDLHW.flatten(3).permute(0, 2, 3, 1)
        position = resize_position(self.position_embedding, maps_NDLHW.shape[3], maps_NDLHW.shape[4])
        patches_NLPD = patches_NLPD + position[:, None, 1:]
        if self.has_time:
            patches_NLPD = patches_NLPD + resize_time(self.time_embedding, patches_NLPD.shape[1])[:, :, None]
        cls_N1D = (self.cls_token + position[:, :1]).expand(patches_NLPD.shape[0], -1, -1)
        encode = {"divided": self._divided, "joint": self._joint, "space": self._space}[self.attention]
        cls_ND, seen_NLPD = encode(cls_N1D, patches_NLPD)
        features_ND = self.norm(cls_ND)
        logits_NK = self.head(self.dropout(features_ND))
        return logits_NK, self.norm(seen_NLPD).mean(dim=2) if self.per_frame else features_ND

    def _divided(self, cls_N1D: torch.Tensor, patches_NLPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks:
            cls_N1D, patches_NLPD = block(cls_N1D, patches_NLPD)
        return cls_N1D[:, 0], patches_NLPD

    def _joint(self, cls_N1D: torch.Tensor, patches_NLPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.cat([cls_N1D, patches_NLPD.flatten(1, 2)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0], tokens[:, 1:].unflatten(1, patches_NLPD.shape[1:3])

    def _space(self, cls_N1D: torch.Tensor, patches_NLPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = _prepend_cls(cls_N1D, patches_NLPD)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = torch.unflatten(tokens, 0, patches_NLPD.shape[:2])
        return tokens[:, :, 0].mean(dim=1), tokens[:, :, 1:]

    def _initialize(self) -> None:
        """Xavier, as the first ViT's, because timm's 0.02 fits width 768 only; embeddings and tokens 0.02; a head near 0,
        so that confidence starts at chance."""
        self.apply(_initialize_linear)
        if isinstance(self.patches, nn.Conv3d):
            nn.init.trunc_normal_(self.patches.weight, std=self.patches.weight[0].numel() ** -0.5)
        for parameter in (self.cls_token, self.position_embedding, *([self.time_embedding] if self.has_time else [])):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.normal_(self.head.weight, std=0.01)
        divided = [block for block in self.blocks if isinstance(block, DividedBlock)]
        # the authors' code: all but the first block start as the image ViT, so each adds time only as far as it helps
        for block in divided[1:]:
            nn.init.zeros_(block.temporal_fc.weight)


def _patches(section: TimeSformerSection) -> nn.Conv3d:
    tube = (section.tubelet, section.patch, section.patch)
    return nn.Conv3d(3, section.width, kernel_size=tube, stride=tube)


def _convolutions(section: TimeSformerSection) -> nn.Sequential:
    """[N, 3, T, H, W] -> [N, D, L, H / patch, W / patch] by 3x3x3 convolutions that halve space, the last of them also time,
    each with BatchNorm and ReLU and twice the one before's channels; none has fewer than 8."""
    halvings, of_time = int(math.log2(section.patch)), int(math.log2(section.tubelet))
    channels = [3, *(max(8, section.width >> (halvings - number)) for number in range(1, halvings)), section.width]
    layers: list[nn.Module] = []
    for number, (entering, leaving) in enumerate(pairwise(channels)):
        stride = (2 if number >= halvings - of_time else 1, 2, 2)
        convolution = nn.Conv3d(entering, leaving, kernel_size=3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm3d(leaving), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class DividedBlock(nn.Module):
    """Attention over time at each position, then over space in each frame with a copy of the cls token, then the MLP.

    The patches stay [N, L, P, D] in memory; only attention over space copies them, behind the cls tokens.
    """

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        from timm.layers.attention import Attention
        from timm.layers.drop import DropPath

        self.temporal_norm = nn.LayerNorm(width, eps=EPSILON)
        self.temporal_attention = Attention(width, heads, qkv_bias=True)
        self.temporal_fc = nn.Linear(width, width)
        self.drop_path = DropPath(drop_path)
        self.space = _build_vit_block(width, heads, drop_path)

    def forward(self, cls_N1D: torch.Tensor, patches_NLPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        space = self.space
        moments = attend_over_time(self.temporal_attention, self.temporal_norm(patches_NLPD))
        patches_NLPD = patches_NLPD + self.temporal_fc(self.drop_path(moments))
        frames = _prepend_cls(space.norm1(cls_N1D), space.norm1(patches_NLPD))
        seen = space.drop_path1(space.attn(frames)).unflatten(0, patches_NLPD.shape[:2])
        # the paper's cls token is one for the clip: it takes the mean of what its copies saw in the frames
        cls_N1D = cls_N1D + seen[:, :, :1].mean(dim=1)
        patches_NLPD = patches_NLPD + seen[:, :, 1:]
        cls_change, patches_change = (space.mlp(space.norm2(tokens)) for tokens in (cls_N1D, patches_NLPD))
        if not isinstance(space.drop_path2, nn.Identity):  # a clip drops all of its tokens or none
            kept_N11 = space.drop_path2(torch.ones_like(cls_N1D[:, :, :1]))
            cls_change, patches_change = cls_change * kept_N11, patches_change * kept_N11[..., None]
        return cls_N1D + cls_change, patches_NLPD + patches_change


def attend_over_time(attention: Attention, tokens_NLPD: torch.Tensor) -> torch.Tensor:
    """Computes the attention of each patch to the same patch of other frames with timm's weights; [N, L, P, D] to the same
    shape.

    The heads of all positions count as heads of the clip, so that nothing is copied into another order and no batch has clips
    times patches rows: attention kernels of some versions take no more than 65,535.
    """
    heads = attention.num_heads
    biases = attention.qkv.bias.chunk(3)
    parts = [F.linear(tokens_NLPD, *of) for of in zip(attention.qkv.weight.chunk(3), biases, strict=True)]
    # [N, P * heads, L, D / heads], views of [N, L, P, D]
    query, key, value = (part.unflatten(3, (heads, -1)).flatten(2, 3).transpose(1, 2) for part in parts)
    seen = F.scaled_dot_product_attention(query, key, value)
    projected: torch.Tensor = attention.proj(seen.transpose(1, 2).reshape(tokens_NLPD.shape))
    return projected


def resize_position(embedding: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Interpolates a square grid [1, 1 + P, D] to [1, 1 + height * width, D], bicubically (DeiT); the cls token's embedding is
    kept."""
    side = math.isqrt(embedding.shape[1] - 1)
    if (height, width) == (side, side):
        return embedding
    grid = embedding[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def resize_time(embedding: torch.Tensor, length: int) -> torch.Tensor:
    """Interpolates [1, L, D] to [1, length, D] linearly; the authors take the nearest, which gives neighboring frames one
    embedding."""
    if length == embedding.shape[1]:
        return embedding
    return F.interpolate(embedding.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)


def _prepend_cls(cls_N1D: torch.Tensor, patches_NLPD: torch.Tensor) -> torch.Tensor:
    """Returns each frame's patches behind a copy of the clip's cls token, [N * L, 1 + P, D]."""
    copies = cls_N1D[:, None].expand(-1, patches_NLPD.shape[1], -1, -1)
    return torch.cat([copies, patches_NLPD], dim=2).flatten(0, 1)


@cache
def _import_timm() -> None:
    with exempt_imports():
        import timm.models.vision_transformer  # noqa: F401 - for the imports of its parts below and above


def _build_vit_block(width: int, heads: int, drop_path: float) -> Block:
    from timm.layers.norm import LayerNorm
    from timm.models.vision_transformer import Block

    return Block(width, heads, qkv_bias=True, drop_path=drop_path, norm_layer=LayerNorm)


def _initialize_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
