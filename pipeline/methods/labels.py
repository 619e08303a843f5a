"""Pseudo-labels: who labels whom, hard or soft, and which count. One knob section, ``method.labels``, for every method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.methods.averages import move_towards
from pipeline.methods.inputs import STUDENTS, Outputs, Setup, Views
from pipeline.methods.thresholds import LabelPolicy

Source = Literal["other", "self", "mean", "ema"]


@dataclass(frozen=True)
class Labels:
    """What one student's strong views are to learn, without gradient."""

    direction: str
    """``labeler_to_learner``, as the metrics name it; the labeler of ``self`` is the learner."""
    targets: torch.Tensor
    """[U] int64 classes, or [U, K] probabilities."""
    classes: torch.Tensor
    """[U] int64, the most probable ones."""
    weights: torch.Tensor
    """[U] float, 0 for labels that do not count."""
    scores: torch.Tensor
    """[U, K] probabilities that ``classes`` come from, after alignment."""
    thresholds: torch.Tensor | None = None
    """[U] float, what the confidence was measured against, where the policy moves it."""


class PseudoLabels(nn.Module):
    """Labels for each student from the weak views, by the method's source or the one that the configuration names."""

    def __init__(self, students: nn.ModuleDict, setup: Setup, source: Source) -> None:
        super().__init__()
        self.section = setup.method.labels
        self.source: Source = self.section.source or source
        self.labelers = {
            "other": {"primary": "auxiliary", "auxiliary": "primary"},
            "self": {name: name for name in STUDENTS},
            "mean": dict.fromkeys(STUDENTS, "mean"),
            "ema": {name: f"{name}_ema" for name in STUDENTS},
        }[self.source]
        thresholds = {"primary": self.section.primary_threshold, "auxiliary": self.section.auxiliary_threshold}
        self._check(thresholds)
        limits = {name: thresholds.get(name.removesuffix("_ema")) for name in self.labelers.values()}
        self.policies = nn.ModuleDict({
            name: LabelPolicy(self.section, setup.method.confidence_threshold if limit is None else limit,
                              setup.num_classes, setup.num_videos, setup.num_unlabeled)
            for name, limit in limits.items()
        })  # fmt: skip
        self.teachers = nn.ModuleDict()
        if self.source == "ema":
            self.teachers = copy.deepcopy(students).requires_grad_(False)

    def _check(self, thresholds: dict[str, float | None]) -> None:
        """Raises UserError for a student's threshold that nothing is measured against."""
        why = "both students give the label together" if self.source == "mean" else ""
        if self.section.thresholds in ("freematch", "softmatch"):
            why = f"method.labels.thresholds={self.section.thresholds} measures confidence against its running mean"
        for name, threshold in thresholds.items():
            if why and threshold is not None:
                raise UserError(f"method.labels.{name}_threshold={threshold:g} does nothing: {why}; leave it out")

    @torch.no_grad()
    def follow(self, students: nn.ModuleDict) -> None:
        """Move EMA teachers towards the students: call it once a step, before anything else, so that no loop needs to know."""
        for name, teacher in self.teachers.items():
            move_towards(teacher, students[name], 1 - self.section.ema_decay)

    @torch.no_grad()
    def say(self, weak: Outputs, clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Softmax [U, K] by student, without gradient: its own, or its teacher's, which sees the clips in evaluation mode."""
        if self.teachers:
            self.teachers.eval()
            weak = {name: self.teachers[name](clips[name]) for name in STUDENTS}
        return {name: logits.float().softmax(dim=1) for name, (logits, _) in weak.items()}

    def forward(self, said: dict[str, torch.Tensor], views: Views) -> dict[str, Labels]:
        """What each student is to learn, from what each of them ``say``s."""
        assert views.videos is not None
        if self.source == "mean":  # the softmax of mean logits is the normalized geometric mean
            said = {"mean": torch.stack([p.clamp(min=1e-30).log() for p in said.values()]).mean(dim=0).softmax(dim=1)}
        if self.source == "ema":
            said = {f"{name}_ema": p for name, p in said.items()}
        decided = {name: self.policies[name](said[name], views.videos, views.labels) for name in sorted(self.policies)}
        return {learner: self._labels(labeler, learner, *decided[labeler]) for learner, labeler in self.labelers.items()}

    def _labels(self, labeler: str, learner: str, p: torch.Tensor, weights: torch.Tensor, thresholds: torch.Tensor) -> Labels:
        classes = p.argmax(dim=1)
        soft = (p.clamp(min=1e-30).log() / self.section.temperature).softmax(dim=1)
        moving = None if self.section.thresholds == "fixed" else thresholds
        return Labels(f"{labeler}_to_{learner}", classes if self.section.hard else soft, classes, weights, p, moving)
