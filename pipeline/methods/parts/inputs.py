"""What a method learns from in one step: views of a batch, the students' outputs for them, and the weights of its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch

from pipeline.config import Config, MethodSection

STUDENTS = ("primary", "auxiliary")


class Output(NamedTuple):
    """What a student makes of N clips."""

    logits: torch.Tensor
    """[N, K]."""
    features: torch.Tensor
    """[N, D], what the logits are made of; [N, moments, D] where a feature stands for a moment (``ContrastFeatures``)."""


Outputs = dict[str, Output]
"""By student."""


@dataclass(frozen=True)
class UnlabeledViews:
    """Normalized float views [U, C, T, H, W] of one worker's unlabeled videos of a step, by student; U = B mu."""

    weak: dict[str, torch.Tensor]
    """Weak views."""
    strong: dict[str, torch.Tensor]
    """Strong views of the same videos in the same order; empty when no loss of the step uses them."""
    hidden_labels: torch.Tensor
    """[U] int64, -1 where unknown: for monitors, never for a loss."""
    videos: torch.Tensor
    """[U] int64, manifest rows of the videos: what FlexMatch's table is indexed by."""


@dataclass(frozen=True)
class Views:
    """Normalized float views [B, C, T, H, W] of one worker's share of a step, by student."""

    labeled: dict[str, torch.Tensor]
    """Weak views of the labeled videos."""
    labels: torch.Tensor
    """[B] int64 in 0..K-1."""
    unlabeled: UnlabeledViews | None = None
    """Views of the unlabeled videos, or None when no loss of the step uses them."""
    mixed_shares: torch.Tensor | None = None
    """[B] share of its own that each labeled clip has, if it was mixed with the one before it (``method.mixup``)."""


@dataclass(frozen=True)
class Step:
    """A step in which unlabeled videos count: its views, what the students make of them, and the supervised losses."""

    labels: torch.Tensor
    """[B] int64 in 0..K-1, of the labeled videos."""
    unlabeled: UnlabeledViews
    labeled: Outputs
    weak: Outputs
    """With gradient if a loss that counts compares what is said of weak views, or if all views pass jointly."""
    strong: Outputs
    """Empty when no loss that counts uses strong views."""
    supervised: dict[str, torch.Tensor] = field(default_factory=dict)
    """``supervised_loss/{student}``, with gradient."""


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
    def use_strong(self) -> bool:
        """Whether a loss that counts looks at strong views."""
        return self.pseudo_label > 0 or self.mix > 0

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
