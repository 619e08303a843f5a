"""The inputs of a method in one step: views of a batch, the students' outputs for them, and the weights of its losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from pipeline.config import TERMS, Config, MethodSection, StrongViewsTerm, TermSection, WeakViewsTerm


class Output(NamedTuple):
    """The output of a student for N clips."""

    logits: torch.Tensor
    """[N, K]."""
    features: torch.Tensor
    """[N, D] features from which the logits are computed; [N, moments, D] if there is one feature per moment
    (``ContrastFeatures``)."""


Outputs = dict[str, Output]
"""The outputs by student."""


@dataclass(frozen=True)
class UnlabeledViews:
    """Normalized float views [U, C, T, H, W] of one worker's unlabeled videos of a step, by student; U = B mu."""

    weak: dict[str, torch.Tensor]
    """Weak views."""
    strong: dict[str, torch.Tensor]
    """Strong views of the same videos in the same order; empty if no loss of the step uses them."""
    hidden_labels: torch.Tensor
    """[U] int64 true classes, -1 if unknown: for monitors, never for a loss."""
    videos: torch.Tensor
    """[U] int64 manifest rows of the videos, which index FlexMatch's table."""


@dataclass(frozen=True)
class Views:
    """Normalized float views [B, C, T, H, W] of one worker's share of a step, by student."""

    labeled: dict[str, torch.Tensor]
    """Weak views of the labeled videos."""
    labels: torch.Tensor
    """[B] int64 in 0..K-1."""
    unlabeled: UnlabeledViews | None = None
    """Views of the unlabeled videos, or None if no loss of the step uses them."""
    mixed_shares: torch.Tensor | None = None
    """[B] the share of itself that each labeled clip kept when it was mixed with the one before it (``supervised.mixup``)."""


@dataclass(frozen=True)
class Step:
    """A step whose losses use unlabeled videos: its views, the students' outputs for them, and the supervised losses."""

    true_labels: torch.Tensor
    """[B] int64 in 0..K-1, of the labeled videos."""
    unlabeled: UnlabeledViews
    labeled: Outputs
    weak: Outputs
    """With gradient if a loss with a weight compares outputs for weak views, or if all views pass jointly."""
    strong: Outputs
    """Empty if no loss with a weight uses strong views."""
    supervised: dict[str, torch.Tensor] = field(default_factory=dict)
    """``supervised_loss/{student}``, with gradient."""


@dataclass(frozen=True)
class Setup:
    """What a method is built from, besides the students."""

    config: Config
    num_classes: int
    """The number of classes, K."""
    num_videos: int = 0
    """The number of rows of the manifest, or one more than the largest row that is trained."""
    num_unlabeled: int = 0
    """The number of unlabeled videos that the run samples from."""

    @property
    def method(self) -> MethodSection:
        """The method's section of the configuration."""
        return self.config.method


class LossWeights(Mapping[str, float]):
    """The weights of one step's losses by their names (``config.method.TERMS``): ``weights.contrast`` is
    ``weights["contrast"]``.

    If the weights of all losses of unlabeled videos are 0, no views of these videos are needed.
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
    def has_unlabeled(self) -> bool:
        """Whether any loss of unlabeled videos has a weight above 0."""
        return any(weight > 0 for term, weight in self.items() if term != "supervised")

    @property
    def has_strong(self) -> bool:
        """Whether any loss with a weight above 0 uses strong views."""
        return any(weight > 0 for term, weight in self.items() if issubclass(TERMS[term], StrongViewsTerm))

    @property
    def has_weak_gradient(self) -> bool:
        """Whether any loss with a weight above 0 compares outputs for weak views; pseudo-labels need no gradient there."""
        return any(weight > 0 for term, weight in self.items() if issubclass(TERMS[term], WeakViewsTerm))


def compute_term_weights(section: MethodSection, step: int, terms: Sequence[str]) -> LossWeights:
    """Computes the weights of a method's terms at a step (from 0 on); all other weights are 0.

    A weight is 0 for ``supervised_steps`` and for the term's ``start`` steps after them, and then rises linearly over its
    ``ramp``, or ``ramp_steps``. The supervised term, which every method has, ignores ``supervised_steps`` and ``ramp_steps``.
    """

    def weight(name: str) -> float:
        term: TermSection = getattr(section, name)
        since = step - term.start - (section.supervised_steps if name != "supervised" else 0)
        share = min(1.0, (since + 1) / ((section.ramp_steps if term.ramp is None else term.ramp) + 1))
        return share * term.weight if since >= 0 else 0.0

    return LossWeights(**{name: weight(name) for name in ("supervised", *terms)})
