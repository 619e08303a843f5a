"""A training step as a research drop writes it: the yardstick of the speed part. In own words, after reading the public code
around FixMatch for video (SVFormer, TCL): a data loader whose processes augment clips in floating point on the CPU, one forward
pass for each view, contiguous layout, losses read back with ``item`` for the log."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2

from pipeline.config import Config
from pipeline.methods import STUDENTS
from tests.gpu.setting import CLASSES

THRESHOLD, GAMMA, BETA, TEMPERATURE = 0.8, 2.0, 2.0, 0.5
Sample = dict[str, torch.Tensor]


class RandomClips(IterableDataset[Sample]):
    """Decoded clips, already in memory, whose views are made frame by frame with one draw a clip: what is compared is the work
    after decoding."""

    def __init__(self, config: Config) -> None:
        self.config = config
        size = config.primary.clip.size
        weak = [v2.RandomResizedCrop(size, (0.5, 1.0), antialias=True), v2.RandomHorizontalFlip()]
        norm = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.45] * 3, [0.225] * 3)]
        self.weak = v2.Compose([*weak, *norm])
        self.strong = v2.Compose([*weak, v2.RandAugment(2, 9), *norm, v2.RandomErasing(0.5)])

    def __iter__(self) -> Iterator[Sample]:
        data = self.config.data
        while True:
            sample = {}
            for name in STUDENTS:
                frames = getattr(self.config, name).clip.frames
                shape = (1 + data.unlabeled_per_labeled, frames, 3, data.decode_size, data.decode_size)
                clips = torch.randint(0, 256, shape, dtype=torch.uint8)
                sample[f"labeled/{name}"] = self.weak(clips[0])
                sample[f"weak/{name}"] = torch.stack([self.weak(clip) for clip in clips[1:]])
                sample[f"strong/{name}"] = torch.stack([self.strong(clip) for clip in clips[1:]])
            sample["labels"] = torch.randint(CLASSES, ())
            yield sample


def make_loader(config: Config, processes: int) -> Iterator[Sample]:
    """Batches of ``data.labeled_per_step`` samples, pinned."""
    rows = config.data.labeled_per_step
    return iter(DataLoader(RandomClips(config), rows, num_workers=processes, pin_memory=torch.cuda.is_available()))


def take_plain_step(
    students: nn.ModuleDict, optimizer: torch.optim.Optimizer, sample: Sample, device: torch.device, dtype: torch.dtype
) -> float:
    """One step of both students; returns the loss, which waits for the device."""
    on_device = {name: value.to(device, non_blocking=True) for name, value in sample.items()}
    outputs: dict[str, dict[str, torch.Tensor]] = {"labeled": {}, "weak": {}, "strong": {}}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for kind, of_kind in outputs.items():
            for name in STUDENTS:
                clips = on_device[f"{kind}/{name}"]
                clips = clips if kind == "labeled" else clips.flatten(0, 1)
                of_kind[name] = students[name](clips.transpose(1, 2))[0]  # [N, T, C, H, W] -> [N, C, T, H, W]
    loss = torch.zeros((), device=device)
    for name, other in zip(STUDENTS, reversed(STUDENTS), strict=True):
        loss = loss + F.cross_entropy(outputs["labeled"][name].float(), on_device["labels"])
        confidence, labels = outputs["weak"][other].detach().float().softmax(1).max(1)
        kept = (confidence >= THRESHOLD).float()
        loss = loss + GAMMA * (F.cross_entropy(outputs["strong"][name].float(), labels, reduction="none") * kept).mean()
    one, two = (F.normalize(outputs["weak"][name].float().softmax(1)) for name in STUDENTS)
    both = torch.cat([one, two])
    similar = (both @ both.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    loss = loss + BETA * F.cross_entropy(similar, torch.arange(len(both), device=device).roll(len(one)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.item())
