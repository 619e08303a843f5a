"""Pseudo-labels: who labels whom, hard or soft, and which count. One knob section, ``method.labels``, for every method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.methods.parts.ema import move_towards
from pipeline.methods.parts.inputs import STUDENTS, Outputs, Setup, Step
from pipeline.methods.parts.thresholds import LabelPolicy

Source = Literal["other", "self", "mean", "ema"]


@dataclass(frozen=True)
class PseudoLabel:
    """What one labeler says of U unlabeled clips, and how much it counts; without gradient."""

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

    labelers: dict[str, str]
    """Who labels whom, by learner: with ``other``, the exchange, ``{"primary": "auxiliary", "auxiliary": "primary"}``; with
    ``self`` each student itself; with ``mean`` and ``ema`` the mean of both, and each student's teacher."""

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
    def update_ema(self, students: nn.ModuleDict) -> None:
        """Move EMA teachers, if there are any, towards the students: once a step, before anything else."""
        for name, teacher in self.teachers.items():
            move_towards(teacher, students[name], self.section.ema_decay)

    @torch.no_grad()
    def predict_probabilities(self, weak: Outputs, clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Softmax [U, K] by student, without gradient: the student's own, from what it made of its ``weak`` views; or, where
        the labeler is an EMA teacher, the teacher's, which sees the ``clips`` of these views in evaluation mode."""
        if self.teachers:
            self.teachers.eval()
            logits = {name: self.teachers[name](clips[name])[0] for name in STUDENTS}
        else:
            logits = {name: output.logits for name, output in weak.items()}
        return {name: values.float().softmax(dim=1) for name, values in logits.items()}

    @torch.no_grad()
    def apply_thresholds(
        self, probabilities: dict[str, torch.Tensor], videos_U: torch.Tensor, labels_B: torch.Tensor
    ) -> dict[str, PseudoLabel]:
        """By labeler, from each student's ``probabilities``: the most probable classes, with weight 1 where the confidence
        reaches the threshold and 0 elsewhere, or as ``method.labels.thresholds`` has it. ``videos`` are manifest rows."""
        if self.source == "mean":  # the softmax of mean logits is the normalized geometric mean
            logs = [p.clamp(min=1e-30).log() for p in probabilities.values()]
            probabilities = {"mean": torch.stack(logs).mean(dim=0).softmax(dim=1)}
        if self.source == "ema":
            probabilities = {f"{name}_ema": p for name, p in probabilities.items()}
        decided = {name: self.policies[name](probabilities[name], videos_U, labels_B) for name in sorted(self.policies)}
        return {labeler: self._label(*decision) for labeler, decision in decided.items()}

    def give(self, step: Step) -> dict[str, PseudoLabel]:
        """By learner, the label that it is given: predictions, thresholds and who labels whom at once, as ``ActNetFormer``
        writes them out."""
        probabilities = self.predict_probabilities(step.weak, step.unlabeled.weak)
        labels = self.apply_thresholds(probabilities, step.unlabeled.videos, step.labels)
        return {learner: labels[labeler] for learner, labeler in self.labelers.items()}

    def _label(self, p_UK: torch.Tensor, weights_U: torch.Tensor, thresholds_U: torch.Tensor) -> PseudoLabel:
        classes = p_UK.argmax(dim=1)
        soft = (p_UK.clamp(min=1e-30).log() / self.section.temperature).softmax(dim=1)
        moving = None if self.section.thresholds == "fixed" else thresholds_U
        return PseudoLabel(classes if self.section.hard else soft, classes, weights_U, p_UK, moving)
