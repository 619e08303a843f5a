"""What a method learns from in one step: the views of a batch, and the weights of its losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pipeline.clips.batch import Batch
from pipeline.clips.views import strong_views, view_seeds, weak_views
from pipeline.config import Config, MethodSection, ViewsSection

STUDENTS = ("primary", "auxiliary")

ViewFunction = Callable[[torch.Tensor, Sequence[int], ViewsSection, int], torch.Tensor]


@dataclass(frozen=True)
class Views:
    """Normalized float views [N, C, T, H, W] of one worker's share of a step, by student; N is B or U = B mu."""

    labeled: dict[str, torch.Tensor]
    """Weak views of the labeled videos."""
    labels: torch.Tensor
    """[B] int64 in 0..K-1."""
    weak: dict[str, torch.Tensor] | None = None
    """Weak views of the unlabeled videos, or None when the step has none."""
    strong: dict[str, torch.Tensor] | None = None
    """Strong views of the same videos in the same order."""
    hidden_labels: torch.Tensor | None = None
    """[U] int64, -1 where unknown: for monitors, never for a loss."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of one step; (0, 0) means that unlabeled videos do not count and need no views."""

    pseudo_label: float
    """gamma_t."""
    contrast: float
    """beta_t."""

    @property
    def use_unlabeled(self) -> bool:
        """Whether any loss of unlabeled videos counts."""
        return self.pseudo_label > 0 or self.contrast > 0


def loss_weights(section: MethodSection, step: int) -> LossWeights:
    """gamma and beta at a step (from 0): zero for ``supervised_steps``, then rising linearly over ``ramp_steps``."""
    since = step - section.supervised_steps
    if section.name == "supervised" or since < 0:
        return LossWeights(0.0, 0.0)
    share = min(1.0, (since + 1) / (section.ramp_steps + 1))
    return LossWeights(share * section.pseudo_label_weight, share * section.contrast_weight)


def make_views(batch: Batch, config: Config, seed: int, device: torch.device | str, unlabeled: bool = True) -> Views:
    """Views of a batch on ``device``: slot 0 labeled; slots 1.. weak and strong, unless ``unlabeled`` is off (pass the
    step's ``LossWeights.use_unlabeled``: views that no loss uses cost time).

    Each view's seed is a hash of (seed, run row, slot, "student/kind"), so the students' views are independent and any
    view of any run can be made again.
    """
    make = partial(_views, batch, config, seed, torch.device(device))
    weak = strong = hidden = None
    if unlabeled and batch.labels.shape[1] > 1:
        slots = range(1, batch.labels.shape[1])
        weak = {name: make(weak_views, "weak", name, slots) for name in STUDENTS}
        strong = {name: make(strong_views, "strong", name, slots) for name in STUDENTS}
        hidden = batch.labels[:, 1:].flatten().to(device)
    labeled = {name: make(weak_views, "labeled", name, range(1)) for name in STUDENTS}
    return Views(labeled, batch.labels[:, 0].to(device), weak, strong, hidden)


def _views(
    batch: Batch, config: Config, seed: int, device: torch.device, make: ViewFunction, kind: str, student: str, slots: range
) -> torch.Tensor:
    clips_BSTHWC: torch.Tensor = getattr(batch, student)
    seeds = view_seeds(seed, batch.rows.numpy(), list(slots), f"{student}/{kind}")
    clips_NTHWC = clips_BSTHWC[:, slots.start : slots.stop].to(device, non_blocking=True).flatten(0, 1)
    return make(clips_NTHWC, seeds, config.views, getattr(config, student).clip.size)
