"""A method, its optimizers and a batch without a data set: what the parts of the check train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.clips.batch import Batch
from pipeline.config import STUDENTS, Config, parse_config
from pipeline.methods import build_method
from pipeline.methods.parts.terms import Results
from pipeline.training.checkpoints import checkpoint
from pipeline.training.model_options import apply_train_options
from pipeline.training.optimizer import build_optimizer
from pipeline.training.step import StepContext, take_step

CLASSES = 5
LABELS_FROM_THE_START = {"supervised_steps": 0, "ramp_steps": 0, "confidence_threshold": 0.0}
"""Every loss counts in the first step, and every pseudo-label is kept."""
SMALL_CLIP = {"frames": 4, "fps": 8, "size": 16}


def full_config(labeled: int, unlabeled_per_labeled: int = 5, **sections: dict[str, Any]) -> Config:
    """The paper's students and clips, which are the program's defaults; ``sections`` override section by section."""
    tree: dict[str, Any] = {
        "data": {"labeled_per_step": labeled, "unlabeled_per_labeled": unlabeled_per_labeled},
        "method": dict(LABELS_FROM_THE_START),
        "scale": {"workers": 0},
    }
    return _parsed(tree, sections)


def small_config(**sections: dict[str, Any]) -> Config:
    """Students of some 50 k parameters on 4 frames of 16 pixels (at width 8, bf16 convolutions of torch 2.14 crash on some
    CPUs), 4 labeled and 8 unlabeled videos a step."""
    tree: dict[str, Any] = {
        "data": {"labeled_per_step": 4, "unlabeled_per_labeled": 2, "decode_size": 20},
        "primary": {"network": {"depth": 10, "width": 16}, "clip": SMALL_CLIP, "optimizer": {"lr": 0.05}},
        "auxiliary": {"network": {"width": 32, "depth": 2, "heads": 2, "patch": 8}, "clip": SMALL_CLIP,
                      "optimizer": {"lr": 0.05, "clip_gradient_norm": 1.0}},
        "method": dict(LABELS_FROM_THE_START),
        "scale": {"workers": 0},
    }  # fmt: skip
    return _parsed(tree, sections)


def _parsed(tree: dict[str, Any], sections: dict[str, dict[str, Any]]) -> Config:
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree)


def make_batch(config: Config, step: int = 0, device: torch.device | None = None) -> Batch:
    """Smooth random clips that move, by step; on ``device`` if one is given, else on the host."""
    generator = torch.Generator().manual_seed(step)
    data, rows, slots = config.data, config.data.labeled_per_step, 1 + config.data.unlabeled_per_labeled
    clips = {}
    for name in STUDENTS:
        frames = getattr(config, name).clip.frames
        coarse = torch.rand(rows * slots, 3, frames, 9, 9, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(frames, data.decode_size, data.decode_size), mode="trilinear")
        clips[name] = smooth.mul(255).byte().permute(0, 2, 3, 4, 1).contiguous().unflatten(0, (rows, slots)).to(device)
    numbers = torch.arange(step * rows, (step + 1) * rows)
    videos = numbers[:, None] * slots + torch.arange(slots)
    return Batch(numbers, videos, videos % CLASSES, clips["primary"], clips["auxiliary"])


def on_host(batch: Batch, device: torch.device) -> Batch:
    """The batch as a stream yields it for that device: pinned for a GPU."""
    if device.type != "cuda":
        return batch
    pinned = {name: getattr(batch, name).pin_memory() for name in ("rows", "videos", "labels", *STUDENTS)}
    return replace(batch, **pinned)


@dataclass(frozen=True)
class Setting:
    """All that a step needs."""

    config: Config
    state: checkpoint.TrainState
    context: StepContext

    def take_step(self, batch: Batch) -> Results:
        """One training step."""
        results = take_step(self.state.method, self.state, batch, self.config, self.context)
        self.state.step += 1
        return results


def make_setting(config: Config, device: torch.device) -> Setting:
    """A new method on ``device``, the same at every call."""
    torch.manual_seed(0)
    method = apply_train_options(build_method(config, CLASSES, 4096, 2048), config.train).to(device)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, {"config": "check", "manifest": "", "labels": ""})
    if config.train.precision == "fp16":
        state.scaler = torch.amp.GradScaler(device.type)
    return Setting(config, state, StepContext(0, device, 1.0))
