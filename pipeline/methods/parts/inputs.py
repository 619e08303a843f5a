"""What a method learns from in one step: views of a batch, the students' outputs for them, and the weights of its losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from pipeline.config import TERMS, Config, MethodSection, StrongViewsTerm, TermSection, WeakViewsTerm

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
    """[B] share of its own that each labeled clip has, if it was mixed with the one before it (``supervised.mixup``)."""


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


class LossWeights(Mapping[str, float]):
    """Weights of one step's losses by their names, ``config.method.TERMS``: ``weights.contrast`` is ``weights["contrast"]``.

    Where those of unlabeled videos are all 0, these need no views.
    """

    def __init__(self, *, supervised: float = 1.0, **terms: float) -> None:
        if unknown := terms.keys() - TERMS.keys():
            raise TypeError(f"there are no losses {', '.join(sorted(unknown))}, only {', '.join(TERMS)}")
        unlabeled = {name: terms.get(name, 0.0) for name in TERMS if name != "supervised"}
        self._weights = {**unlabeled, "supervised": supervised}

    def __getitem__(self, term: str) -> float:
        return self._weights[term]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getattr__(self, term: str) -> float:
        if term.startswith("_") or term not in self._weights:
            raise AttributeError(f"there is no loss {term}")
        return self._weights[term]

    def __repr__(self) -> str:
        return f"LossWeights({', '.join(f'{term}={weight:g}' for term, weight in self.items() if weight)})"

    @property
    def use_unlabeled(self) -> bool:
        """Whether any loss of unlabeled videos counts."""
        return any(weight > 0 for term, weight in self.items() if term != "supervised")

    @property
    def use_strong(self) -> bool:
        """Whether a loss that counts looks at strong views."""
        return any(weight > 0 for term, weight in self.items() if issubclass(TERMS[term], StrongViewsTerm))

    @property
    def weak_gradient(self) -> bool:
        """Whether a loss that counts compares outputs for weak views: pseudo-labels need no gradient there."""
        return any(weight > 0 for term, weight in self.items() if issubclass(TERMS[term], WeakViewsTerm))


def term_weights(section: MethodSection, step: int, terms: Sequence[str]) -> LossWeights:
    """Weights of a method's terms at a step (from 0), all others 0: zero for ``supervised_steps`` and the term's ``start``
    more, then rising linearly over its ``ramp``, or ``ramp_steps``. The supervised term, which every method has, does not wait
    for ``supervised_steps`` nor follow ``ramp_steps``."""

    def weight(name: str) -> float:
        term: TermSection = getattr(section, name)
        since = step - term.start - (section.supervised_steps if name != "supervised" else 0)
        share = min(1.0, (since + 1) / ((section.ramp_steps if term.ramp is None else term.ramp) + 1))
        return share * term.weight if since >= 0 else 0.0

    return LossWeights(**{name: weight(name) for name in ("supervised", *terms)})
