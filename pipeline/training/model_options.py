"""Applies to a method, before it is trained, what the configuration's ``train`` section asks for."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import TrainSection
from pipeline.methods import Method
from pipeline.methods.parts.ema import move_toward
from pipeline.methods.parts.forward import freeze_statistics
from pipeline.training.sync_batch_norm import synchronize_norms


def apply_train_options(method: Method, train: TrainSection) -> Method:
    """Applies memory layout, synchronized BatchNorm, running means of weights, checkpointed activations and compilation.

    To be called before the method is distributed. The names of its parameters stay as they are.
    """
    changed: Any = method
    if train.channels_last:
        changed = changed.to(memory_format=torch.channels_last_3d)
    if train.sync_batch_norm:
        changed = synchronize_norms(changed)
    if train.ema_decay is not None:
        changed.start_averages()
    if train.activation_checkpointing:
        for student in changed.students.values():
            for block in list_blocks(student):
                block.forward = partial(_run_checkpointed, block, block.forward)
    if train.compile != "off":
        for student in changed.students.values():
            # a graph for each number of clips: a step has two or three of them, and never others
            student.compile(backend=train.compile, dynamic=False)
    result: Method = changed
    return result


def update_ema(method: Method, decay: float | None, step: int) -> None:
    """Updates ``method.averages`` after step ``step`` (from 0), if there are any; BatchNorm's statistics are copied."""
    if method.averages is not None and decay is not None:
        move_toward(method.averages, method.students, min(decay, (1 + step) / (10 + step)))


def list_blocks(student: Any) -> list[nn.Module]:
    """Lists a student's repeated blocks, in which most of its activations are made."""
    if hasattr(student, "blocks"):
        return list(student.blocks)
    return [block for name in ("layer1", "layer2", "layer3", "layer4") for block in getattr(student.network, name)]


def _run_checkpointed(block: nn.Module, forward: Any, *inputs: torch.Tensor) -> Any:
    """Calls ``forward``, which the backward pass calls again; that must not update BatchNorm's statistics a second time."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = lambda: (contextlib.nullcontext(), freeze_statistics(block))  # noqa: E731
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
