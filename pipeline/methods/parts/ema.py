"""Running means of weights: one call for all tensors of a module, where one for each would cost a GPU hundreds of launches."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move_towards(means: nn.Module, module: nn.Module, share: float) -> None:
    """``means += share * (module - means)`` for the parameters of two modules of the same structure.

    Buffers (BatchNorm's statistics) are copied, as USB does: they are running means already.
    """
    torch._foreach_lerp_(list(means.parameters()), list(module.parameters()), share)
    kept, new = list(means.buffers()), list(module.buffers())
    for dtype in {buffer.dtype for buffer in kept}:  # torch takes tensors of one type together only
        torch._foreach_copy_([b for b in kept if b.dtype == dtype], [b for b in new if b.dtype == dtype])
