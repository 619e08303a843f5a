"""What a method gets before it is trained, by the knobs of ``train``."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import TrainSection
from pipeline.methods import Method
from pipeline.methods.parts.ema import move_towards
from pipeline.methods.parts.forward import frozen_statistics
from pipeline.training.sync_batch_norm import synchronize_norms


def equip(method: Method, train: TrainSection) -> Method:
    """The method, equipped, before it is distributed. The names of its parameters stay as they are."""
    equipped: Any = method
    if train.channels_last:
        equipped = equipped.to(memory_format=torch.channels_last_3d)
    if train.sync_batch_norm:
        equipped = synchronize_norms(equipped)
    if train.ema_decay is not None:
        # part of the method, so that every checkpoint has it; without gradient, so that DDP leaves it alone
        equipped.averages = copy.deepcopy(equipped.students).requires_grad_(False)
    if train.activation_checkpointing:
        for student in equipped.students.values():
            for block in blocks_of(student):
                block.forward = partial(_checkpointed, block, block.forward)
    if train.compile != "off":
        for student in equipped.students.values():
            # a graph for each number of clips: a step has two or three of them, and never others
            student.compile(backend=train.compile, dynamic=False)
    made: Method = equipped
    return made


def update_ema(method: nn.Module, students: nn.ModuleDict, decay: float | None, step: int) -> None:
    """Move the running means of the students' weights, ``averages``, after a step (from 0); statistics are copied."""
    averages = getattr(method, "averages", None)
    if averages is None or decay is None:
        return
    move_towards(averages, students, min(decay, (1 + step) / (10 + step)))


def blocks_of(student: Any) -> list[nn.Module]:
    """The repeated blocks: most of a student's activations are made in them."""
    if hasattr(student, "blocks"):
        return list(student.blocks)
    return [block for name in ("layer1", "layer2", "layer3", "layer4") for block in getattr(student.network, name)]


def _checkpointed(block: nn.Module, forward: Any, *inputs: torch.Tensor) -> Any:
    """``forward``, computed again in the backward pass, which must not move BatchNorm's statistics a second time."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = lambda: (contextlib.nullcontext(), frozen_statistics(block))  # noqa: E731
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
