"""Running means of weights, with one call for all tensors of a module: one per tensor would cost a GPU hundreds of launches."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def move_toward(means: nn.Module, module: nn.Module, decay: float) -> None:
    """Computes ``means = decay * means + (1 - decay) * module`` for the parameters of two modules of the same structure.

    Buffers (BatchNorm's statistics) are copied, as USB does: they are running means already.
    """
    get_ema_multi_avg_fn(decay)(list(means.parameters()), list(module.parameters()), 0)
    old, new = list(means.buffers()), list(module.buffers())
    for dtype in {buffer.dtype for buffer in old}:  # torch takes tensors of one type together only
        torch._foreach_copy_([b for b in old if b.dtype == dtype], [b for b in new if b.dtype == dtype])
