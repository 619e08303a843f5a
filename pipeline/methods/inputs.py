"""What a method learns from in one step: the views of a batch, and the weights of its losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from pipeline.clips.batch import Batch
from pipeline.clips.modalities import derive
from pipeline.clips.seeds import Ints, hash64
from pipeline.clips.views import strong_views, view_seeds, weak_views
from pipeline.config import ClipSection, Config, MethodSection, ViewsSection

STUDENTS = ("primary", "auxiliary")
Outputs = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Logits [N, K] and features [N, D] by student."""

ViewFunction = Callable[[torch.Tensor, Sequence[int], ViewsSection, int, torch.memory_format], torch.Tensor]


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
    videos: torch.Tensor | None = None
    """[U] int64, manifest rows of the unlabeled videos: what FlexMatch's table is indexed by."""
    label_smoothing: float = 0.0
    """``method.label_smoothing``."""
    mixed_shares: torch.Tensor | None = None
    """[B] share of its own that each labeled clip has, if it was mixed with the one before it."""


class Method(nn.Module):
    """What every method is: made from (students, setup); ``forward(views, weights)`` returns a dict of scalars, ``loss`` with
    gradient and all else without; beside them ``scores/{student}`` [U, K], of weak views, if it has some."""

    TERMS: ClassVar[tuple[str, ...]] = ()
    """The fields of ``LossWeights`` that it uses."""
    students: nn.ModuleDict
    """``primary`` and ``auxiliary``, with their projection heads if any."""

    def __init__(self, students: nn.ModuleDict) -> None:
        super().__init__()
        self.students = students


@dataclass(frozen=True)
class Setup:
    """What methods are built from, beside the students."""

    config: Config
    num_classes: int
    """K."""
    num_videos: int = 0
    """Rows of the manifest, or one more than the largest row that is trained."""
    num_unlabeled: int = 0
    """Unlabeled videos of the plan."""

    @property
    def method(self) -> MethodSection:
        """The method's knobs."""
        return self.config.method


@dataclass(frozen=True)
class LossWeights:
    """Weights of one step's losses; where those of unlabeled videos are all 0, these need no views."""

    pseudo_label: float = 0.0
    """gamma_t."""
    contrast: float = 0.0
    """beta_t."""
    group_contrast: float = 0.0
    """Of TCL's groups."""
    alignment: float = 0.0
    """Of LTG's alignment."""
    mix: float = 0.0
    """Of SVFormer's mixed clips."""
    supervised: float = 1.0
    """Of Ls, every method's."""

    @property
    def use_unlabeled(self) -> bool:
        """Whether any loss of unlabeled videos counts."""
        return any(getattr(self, field.name) > 0 for field in fields(self) if field.name != "supervised")

    @property
    def weak_gradient(self) -> bool:
        """Whether a loss that counts compares features of weak views: pseudo-labels need no gradient there."""
        return self.contrast > 0 or self.group_contrast > 0 or self.alignment > 0


def term_weights(section: MethodSection, step: int, terms: Sequence[str]) -> LossWeights:
    """Weights of a method's terms at a step (from 0), all others 0: zero for ``supervised_steps`` and the term's ``start``
    more, then rising linearly over its ``ramp``, or ``ramp_steps``. The supervised term, which every method has, does not wait
    for ``supervised_steps`` nor follow ``ramp_steps``."""

    def weight(term: str) -> float:
        since = step - getattr(section.start, term) - (section.supervised_steps if term != "supervised" else 0)
        ramp = getattr(section.ramp, term)
        share = min(1.0, (since + 1) / ((section.ramp_steps if ramp is None else ramp) + 1))
        return share * getattr(section, f"{term}_weight") if since >= 0 else 0.0

    return LossWeights(**{term: weight(term) for term in ("supervised", *terms)})


def make_views(batch: Batch, config: Config, seed: int, device: torch.device | str, unlabeled: bool = True) -> Views:
    """Views of a batch on ``device``: slot 0 labeled; slots 1.. weak and strong, unless ``unlabeled`` is off (pass the
    step's ``LossWeights.use_unlabeled``: views that no loss uses cost time).

    Each view's seed is a hash of (seed, run row, slot, "student/kind"), so the students' views are independent and any
    view of any run can be made again.
    """
    make = partial(_views, batch, config, seed, torch.device(device))
    weak = strong = hidden = videos = None
    if unlabeled and batch.labels.shape[1] > 1:
        slots = range(1, batch.labels.shape[1])
        weak = {name: make(weak_views, "weak", name, slots) for name in STUDENTS}
        strong = {name: make(strong_views, "strong", name, slots) for name in STUDENTS}
        hidden = batch.labels[:, 1:].flatten().to(device)
        videos = batch.videos[:, 1:].flatten().to(device)
    labeled = {name: make(weak_views, "labeled", name, range(1)) for name in STUDENTS}
    shares = mixup_shares(seed, batch.rows.numpy(), config.method.mixup, device) if config.method.mixup else None
    if shares is not None:
        labeled = {name: mix_clips(clips, shares) for name, clips in labeled.items()}
    return Views(
        labeled, batch.labels[:, 0].to(device), weak, strong, hidden, videos, config.method.label_smoothing, shares
    )  # fmt: skip


def mixup_shares(seed: int, rows_B: Ints, alpha: float, device: torch.device | str) -> torch.Tensor:
    """[B] float32 from Beta(alpha, alpha), each by (seed, row)."""
    seeds = [int(number) for number in hash64(seed, rows_B, "mixup")]
    shares = [np.random.Generator(np.random.Philox(key=number)).beta(alpha, alpha) for number in seeds]
    return torch.tensor(shares, dtype=torch.float32, device=device)


def mix_clips(clips_NCTHW: torch.Tensor, shares_N: torch.Tensor) -> torch.Tensor:
    """Each clip's share of itself, the rest of the one before it in the batch, the last one before the first."""
    return clips_NCTHW.roll(1, dims=0).lerp(clips_NCTHW, shares_N[:, None, None, None, None])


def _views(
    batch: Batch, config: Config, seed: int, device: torch.device, make: ViewFunction, kind: str, student: str, slots: range
) -> torch.Tensor:
    clips_BSTHWC: torch.Tensor = getattr(batch, student)
    seeds = view_seeds(seed, batch.rows.numpy(), list(slots), f"{student}/{kind}")
    clips_NTHWC = clips_BSTHWC[:, slots.start : slots.stop].to(device, non_blocking=True).flatten(0, 1)
    clip: ClipSection = getattr(config, student).clip
    # convolutions with weights in this layout would copy clips of another one twice, forward and backward
    layout = torch.channels_last_3d if config.train.channels_last else torch.contiguous_format
    return derive(make(clips_NTHWC, seeds, config.views, clip.size, layout), clip.modality)
