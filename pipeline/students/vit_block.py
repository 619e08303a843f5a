"""The transformer block of ViT (Dosovitskiy et al., ICLR 2021) with the names, weights and numbers of timm's ``Block``.

It is not timm's itself because ``import timm`` takes 4.7 s of a CPU, twice what torch takes: it imports torchvision,
``torch._dynamo`` and, where it is installed, wandb.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for tokens [N, L, D]; each change is dropped at the rate ``drop_path``."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        layers = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens_NLD: torch.Tensor) -> torch.Tensor:
        """Returns tokens of the same shape."""
        tokens_NLD = tokens_NLD + self.drop_path1(self.attn(self.norm1(tokens_NLD)))
        changed: torch.Tensor = tokens_NLD + self.drop_path2(self.mlp(self.norm2(tokens_NLD)))
        return changed


class Attention(nn.Module):
    """Multi-head self-attention over tokens [N, L, D], with a bias for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_NLD: torch.Tensor) -> torch.Tensor:
        """Returns tokens of the same shape."""
        # three of [N, heads, L, D / heads]
        query, key, value = self.qkv(tokens_NLD).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return projected


class DropPath(nn.Module):
    """In training replaces items of the batch by 0 at ``rate`` and divides the others by 1 - ``rate`` (Huang et al., 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns ``items`` [N, ...] as they are outside of training."""
        if not self.training or not self.rate:
            return items
        kept = items.new_empty(items.shape[:1] + (1,) * (items.ndim - 1)).bernoulli_(1 - self.rate)
        return items * kept.div_(1 - self.rate)
