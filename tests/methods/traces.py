"""Thirty real training steps on generated clips: what pinned loss traces and degenerations of methods are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.clips.batch import Batch
from pipeline.config import STUDENTS, Config, parse_config
from pipeline.methods import build_method, compute_loss_weights, make_views
from pipeline.training.optimizer import build_optimizer, clip_gradient

CLASSES = 4
VIDEOS = 48
"""Of the generated set: rows 0..23 labeled, 24..47 not."""


def small_config(**sections: Any) -> Config:
    """Students of some 10 k parameters on 4 frames of 16 pixels; ``sections`` override section by section."""
    clip = {"frames": 4, "fps": 8, "size": 16}
    tree: dict[str, Any] = {
        "data": {"decode_size": 20, "labeled_per_step": 4, "unlabeled_per_labeled": 2},
        "primary": {"network": {"depth": 10, "width": 8, "norm": "group"}, "clip": clip, "optimizer": {"lr": 0.05}},
        "auxiliary": {"network": {"width": 32, "depth": 2, "heads": 2, "patch": 8}, "clip": clip,
                      "optimizer": {"lr": 0.05, "clip_gradient_norm": 1.0}},
        "views": {"weak": {"flip": 0.0}},
    }  # fmt: skip
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree)


def clips_of(videos: torch.Tensor, frames: int = 4, size: int = 20) -> torch.Tensor:
    """[N] video numbers -> uint8 [N, T, size, size, 3]: a bright bar whose direction of motion is the class, video mod 4."""
    shown = []
    for video in videos.tolist():
        generator = torch.Generator().manual_seed(video)
        clip = torch.randint(0, 80, (frames, size, size, 3), generator=generator, dtype=torch.uint8)
        start = int(torch.randint(0, size, (1,), generator=generator))
        for frame in range(frames):
            place = (start + (4 if video % 2 else -4) * frame) % size
            if video % 4 < 2:
                clip[frame, :, place : place + 3] = 255
            else:
                clip[frame, place : place + 3] = 255
        shown.append(clip)
    return torch.stack(shown)


def batch_of(step: int, rows: int = 4, unlabeled: int = 2) -> Batch:
    """The generated set's batch of a step."""
    numbers = torch.arange(step * rows, (step + 1) * rows)
    others = (numbers[:, None] * unlabeled + torch.arange(unlabeled)) % (VIDEOS // 2) + VIDEOS // 2
    videos = torch.cat([numbers[:, None] % (VIDEOS // 2), others], dim=1)
    clips = clips_of(videos.flatten()).unflatten(0, videos.shape)
    return Batch(numbers, videos, videos % CLASSES, clips, clips.clone())


def trained(config: Config, steps: int = 30) -> tuple[nn.Module, list[dict[str, float]]]:
    """The method after ``steps`` steps from seed 0, and every step's results."""
    torch.manual_seed(0)
    method = build_method(config, CLASSES, VIDEOS, VIDEOS // 2)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = getattr(config, name).optimizer.lr
    return method, [one_step(method, optimizers, config, step) for step in range(steps)]


def one_step(method: nn.Module, optimizers: dict[str, torch.optim.Optimizer], config: Config, step: int) -> dict[str, float]:
    """What ``training.loop`` does, at a constant rate."""
    torch.manual_seed(step)
    weights = compute_loss_weights(config.method, step)
    results = method(make_views(batch_of(step), config, 0, "cpu", unlabeled=weights.has_unlabeled), weights)
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    results["loss"].backward()
    for name, optimizer in optimizers.items():
        clip_gradient(method.students[name], getattr(config, name).optimizer.clip_gradient_norm)
        optimizer.step()
    return {name: float(value.detach()) for name, value in results.items() if value.ndim == 0}
