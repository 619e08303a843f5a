"""Pseudo-labels: who labels whom, hard or soft, and which count. One knob section, ``method.labels``, for every method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.methods.parts.ema import move_toward
from pipeline.methods.parts.inputs import Outputs, Setup, Step
from pipeline.methods.parts.thresholds import LabelPolicy

LabelSource = Literal["other", "self", "mean", "ema"]


@dataclass(frozen=True)
class PseudoLabel:
    """The label that one labeler gives to each of U unlabeled clips, and its weight; without gradient."""

    targets: torch.Tensor
    """[U] int64 classes, or [U, K] probabilities."""
    classes: torch.Tensor
    """[U] int64, the most probable classes."""
    weights: torch.Tensor
    """[U] float, 0 for labels that do not count."""
    scores: torch.Tensor
    """[U, K] probabilities that ``classes`` are computed from, after alignment."""
    thresholds: torch.Tensor | None = None
    """[U] float thresholds with which the confidence was compared, if the policy moves them."""


class PseudoLabels(nn.Module):
    """Computes labels for each student from the weak views.

    The labels come from the method's own source, unless the configuration names another.
    """

    labelers: dict[str, str]
    """The labeler of each learner: with ``other``, the exchange, ``{"primary": "auxiliary", "auxiliary": "primary"}``; with
    ``self`` each student itself; with ``mean`` and ``ema`` the mean of both, and each student's teacher."""

    def __init__(self, students: nn.ModuleDict, setup: Setup, source: LabelSource) -> None:
        super().__init__()
        self.section = setup.method.labels
        self.source: LabelSource = self.section.source or source
        self.labelers = {
            "other": {"primary": "auxiliary", "auxiliary": "primary"},
            "self": {name: name for name in STUDENTS},
            "mean": dict.fromkeys(STUDENTS, "mean"),
            "ema": {name: f"{name}_ema" for name in STUDENTS},
        }[self.source]
        thresholds = {"primary": self.section.primary_threshold, "auxiliary": self.section.auxiliary_threshold}
        self._check_thresholds(thresholds)
        limits = {name: thresholds.get(name.removesuffix("_ema")) for name in self.labelers.values()}
        self.policies = nn.ModuleDict({
            name: LabelPolicy(self.section, setup.method.confidence_threshold if limit is None else limit,
                              setup.num_classes, setup.num_videos, setup.num_unlabeled)
            for name, limit in limits.items()
        })  # fmt: skip
        self.teachers = nn.ModuleDict()
        if self.source == "ema":
            self.teachers = copy.deepcopy(students).requires_grad_(False)

    def _check_thresholds(self, thresholds: dict[str, float | None]) -> None:
        """Raises UserError for a student's threshold that has no effect."""
        why = "both students give the label together" if self.source == "mean" else ""
        if self.section.thresholds in ("freematch", "softmatch"):
            why = f"method.labels.thresholds={self.section.thresholds} measures confidence against its running mean"
        for name, threshold in thresholds.items():
            if why and threshold is not None:
                raise UserError(f"method.labels.{name}_threshold={threshold:g} does nothing: {why}; leave it out")

    @torch.no_grad()
    def update_ema(self, students: nn.ModuleDict) -> None:
        """Moves EMA teachers, if there are any, toward the students; to be called once a step, before anything else.

        Frozen teachers, of ``ema_decay=1``, keep BatchNorm's statistics as well.
        """
        if self.section.ema_decay == 1:
            return
        for name, teacher in self.teachers.items():
            move_toward(teacher, students[name], self.section.ema_decay)

    @torch.no_grad()
    def predict_probabilities(self, weak: Outputs, clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns softmax vectors [U, K] by student, without gradient.

        They are computed from the student's own outputs for its ``weak`` views or, if the labeler is an EMA teacher, from the
        teacher's, which sees the ``clips`` of these views in evaluation mode.
        """
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
        """Returns pseudo-labels by labeler, from each student's ``probabilities``.

        A label is the most probable class. Its weight is 1 if the confidence reaches the threshold and 0 if not, or as
        ``method.labels.thresholds`` says. ``videos_U`` are manifest rows.
        """
        if self.source == "mean":  # the softmax of mean logits is the normalized geometric mean
            logs = [p.clamp(min=1e-30).log() for p in probabilities.values()]
            probabilities = {"mean": torch.stack(logs).mean(dim=0).softmax(dim=1)}
        if self.source == "ema":
            probabilities = {f"{name}_ema": p for name, p in probabilities.items()}
        decided = {name: self.policies[name](probabilities[name], videos_U, labels_B) for name in sorted(self.policies)}
        return {labeler: self._make_label(*decision) for labeler, decision in decided.items()}

    def assign_labels(self, step: Step) -> dict[str, PseudoLabel]:
        """Returns, by learner, the label that it is given: predictions, thresholds and the choice of the labeler in one call.

        ``ActNetFormer`` writes these steps out.
        """
        probabilities = self.predict_probabilities(step.weak, step.unlabeled.weak)
        labels = self.apply_thresholds(probabilities, step.unlabeled.videos, step.true_labels)
        return {learner: labels[labeler] for learner, labeler in self.labelers.items()}

    def _make_label(self, p_UK: torch.Tensor, weights_U: torch.Tensor, thresholds_U: torch.Tensor) -> PseudoLabel:
        classes = p_UK.argmax(dim=1)
        soft = (p_UK.clamp(min=1e-30).log() / self.section.temperature).softmax(dim=1)
        moving = None if self.section.thresholds == "fixed" else thresholds_U
        return PseudoLabel(classes if self.section.hard else soft, classes, weights_U, p_UK, moving)
