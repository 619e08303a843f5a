"""A training step as a research drop writes it: the yardstick of the speed part. In own words, after reading the public code
around FixMatch for video (SVFormer, TCL): a data loader whose processes augment clips in floating point on the CPU, one forward
pass for each view, contiguous layout, losses read back with ``item`` for the log."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2

from pipeline.config import STUDENTS, Config
from pipeline.methods.parts.precision import PRECISIONS
from tests.gpu.setting import CLASSES
from tests.gpu.timing import time_steps

PROCESSES = 16
"""Of its data loader, as research drops set them on a node of that many cores."""
SHARED_MEMORY = Path("/dev/shm")
"""Where processes of a data loader leave their batches."""
ROUNDS = 2
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


def batch_bytes(config: Config) -> int:
    """Of a batch of views, float32: 0.85 GB at 8 + 40 clips of 224 pixels."""
    views = config.data.labeled_per_step * (1 + 2 * config.data.unlabeled_per_labeled)
    clips = [getattr(config, name).clip for name in STUDENTS]
    return sum(4 * views * clip.frames * 3 * clip.size**2 for clip in clips)


def processes_that_fit(config: Config, free_bytes: int, cores: int = PROCESSES) -> int:
    """Processes of the loader: each leaves one batch in shared memory, and one more is on its way to the step."""
    return max(0, min(cores, free_bytes // batch_bytes(config) - 2))


def make_loader(config: Config, processes: int) -> Iterator[Sample]:
    """Batches of ``data.labeled_per_step`` samples, pinned."""
    rows, ahead = config.data.labeled_per_step, 1 if processes else None
    pin = torch.cuda.is_available()
    return iter(DataLoader(RandomClips(config), rows, num_workers=processes, prefetch_factor=ahead, pin_memory=pin))


class PlainSteps:
    """The plain restatement's training. ``processes`` of its loader: as many as shared memory has room for if None."""

    def __init__(self, config: Config, students: nn.ModuleDict, device: torch.device, processes: int | None = None) -> None:
        self.why_so_few = ""
        if processes is None:
            processes = processes_that_fit(config, shutil.disk_usage(SHARED_MEMORY).free)
            self.why_so_few = f": {SHARED_MEMORY} has no room for {PROCESSES} batches" if processes < PROCESSES else ""
        self.processes, self.device, self.students = processes, device, students
        self.dtype = PRECISIONS[config.train.precision]
        self.optimizer = torch.optim.SGD(students.parameters(), lr=0.01, momentum=0.9)
        self.loader = make_loader(config, processes)
        self.made = next(self.loader)

    def time_with_views_made(self, steps: int, warm_up: int) -> list[float]:
        """Seconds of steps on one batch of views."""
        return time_steps(lambda: self._step(self.made), self.device, steps, warm_up)

    def time_with_loader(self, steps: int, end: float) -> list[float]:
        """Mean seconds of a step over a round of the loader's processes, or over ``steps`` without them; of a second round too,
        if it is done by ``end`` (of ``time.monotonic``).

        Processes that began together are done together, so that only whole rounds say how fast they are; and not the first one,
        which they had all the time for that the steps before it took.
        """
        for _ in range(self.processes):
            next(self.loader)
        means: list[float] = []
        steps = self.processes or steps
        while len(means) < ROUNDS and (not means or time.monotonic() + means[-1] * steps < end):
            means.append(math.fsum(time_steps(lambda: self._step(next(self.loader)), self.device, steps, 0)) / steps)
        return means

    def _step(self, sample: Sample) -> float:
        return take_plain_step(self.students, self.optimizer, sample, self.device, self.dtype)


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
