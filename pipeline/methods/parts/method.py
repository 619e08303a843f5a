"""The base class of all methods: what each of them does in every step, so that its file shows only what is its own."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.config import STUDENTS
from pipeline.manifest.label_file import FileLabels
from pipeline.methods.parts.forward import pass_views
from pipeline.methods.parts.inputs import LossWeights, Outputs, Setup, Step, Views
from pipeline.methods.parts.monitors import SCORES, compute_direction_monitors, compute_student_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabel, PseudoLabels
from pipeline.methods.parts.terms import (
    Losses,
    Results,
    collect_results,
    compute_pseudo_label_losses,
    compute_supervised_losses,
    sum_terms,
)
from pipeline.methods.parts.thresholds import weigh_file_labels


class Method(nn.Module):
    """Both students with a loss. A method names its ``TERMS`` and implements ``forward_unlabeled``; this class does the rest.

    ``forward`` updates EMA teachers, passes the views through the students and computes the supervised losses. A step without
    losses of unlabeled videos ends there; otherwise ``forward_unlabeled`` continues. Projection heads always get a gradient,
    if only of zeros, because DDP waits for the gradient of every parameter.
    """

    TERMS: ClassVar[tuple[str, ...]] = ()
    """The losses of unlabeled videos that the method has, by the names of their weights; none if it uses labels only."""
    file_labels: dict[str, torch.Tensor]
    """What ``method.file_label.file`` says of the N videos that it knows, only if its loss has a weight: ``classes`` [N],
    ``confidence`` [N], ``weights`` [N], perhaps ``probabilities`` [N, K], and ``indices`` [V]: for each row of the manifest its
    index in them, or -1. They are not buffers, since DDP broadcasts all buffers in every step."""
    students: nn.ModuleDict
    """``primary`` and ``auxiliary``, with their projection heads if any."""
    averages: nn.ModuleDict | None
    """The running means of the students' weights; None if there are none."""

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__()
        self.students, self.averages = students, None
        self.section = setup.method

    def forward(self, views: Views, weights: LossWeights) -> Results:
        """Returns ``loss`` with gradient, and without gradient everything that metrics.jsonl shows, with unweighted losses.

        If the step has losses of unlabeled videos, ``scores/{student}`` [U, K] are the students' predictions for weak views.
        """
        for part in self.children():
            if isinstance(part, PseudoLabels):
                part.update_ema(self.students)
        labeled, weak, strong = self.run_students(views, weights)
        supervised = self.compute_supervised_losses(labeled, views)
        if views.unlabeled is None or not weak:
            outcome = collect_results(weights.supervised * sum_terms(supervised), supervised)
        else:
            step = Step(views.labels, views.unlabeled, labeled, weak, strong, supervised)
            own = {name: weak[name] for name in STUDENTS}
            outcome = self.forward_unlabeled(step, weights) | compute_student_monitors(own, views.unlabeled.hidden_labels)
            outcome = self._add_file_labels(outcome, step, weights)
        return {**outcome, "loss": self._reach_heads(outcome["loss"])}

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Returns the whole loss of a step with losses of unlabeled videos, and the monitored quantities, by
        ``collect_results``."""
        raise NotImplementedError(f"{type(self).__name__} has the terms {self.TERMS} and no forward_unlabeled")

    def has_unlabeled_losses(self, views: Views, weights: LossWeights) -> bool:
        """Whether the method has losses of unlabeled videos, one of them has a weight in this step, and the step has their
        views."""
        return bool(self.TERMS) and weights.has_unlabeled and views.unlabeled is not None

    def run_students(self, views: Views, weights: LossWeights) -> tuple[Outputs, Outputs, Outputs]:
        """Returns the students' outputs for labeled, weak and strong views; empty for views that no loss with a weight uses."""
        if not self.has_unlabeled_losses(views, weights):
            views = Views(views.labeled, views.labels)
        return pass_views(self.students, views, weights, self.section.batch_norm)

    def compute_supervised_losses(self, labeled: Outputs, views: Views) -> Losses:
        """Computes Ls: ``supervised_loss/{student}``, with gradient."""
        return compute_supervised_losses(labeled, views, self.section.supervised.label_smoothing)

    def take_file_labels(self, labels: FileLabels | None, num_classes: int, num_videos: int) -> None:
        """Takes the labels that a file gives to unlabeled videos; None: none. ``num_videos`` are the rows of the manifest.

        They are not part of a checkpoint: a run reads its file again, and knows it by its fingerprint.
        """
        indices = torch.full((num_videos,), -1, dtype=torch.int32)
        nothing = {"confidence": torch.zeros(1), "weights": torch.zeros(1)}
        self.file_labels = {"indices": indices, "classes": torch.zeros(1, dtype=torch.int32), **nothing}
        if labels is not None:
            indices[torch.from_numpy(labels.rows)] = torch.arange(labels.count, dtype=torch.int32)
            tables = {name: getattr(labels, name) for name in ("classes", "confidence", "probabilities")}
            self.file_labels |= {name: torch.from_numpy(table) for name, table in tables.items() if table is not None}
            self.file_labels["weights"] = weigh_file_labels(self.section.file_label, labels)
        self._num_file_classes = num_classes

    def start_averages(self) -> None:
        """Starts running means of the students' weights.

        They are a part of the method, so that every checkpoint has them; without gradient, so that DDP leaves them alone.
        """
        self.averages = copy.deepcopy(self.students).requires_grad_(False)

    def _look_up_file_labels(self, videos_U: torch.Tensor) -> PseudoLabel:
        """Makes the file's labels of some videos; the weight is 0 where it says nothing, or is not sure enough."""
        if self.file_labels["indices"].device != videos_U.device:
            self.file_labels = {name: table.to(videos_U.device) for name, table in self.file_labels.items()}
        tables, section = self.file_labels, self.section.file_label
        indices_U = tables["indices"][videos_U].long()
        known_U, indices_U = indices_U >= 0, indices_U.clamp(min=0)
        classes_U, confidence_U = tables["classes"][indices_U].long(), tables["confidence"][indices_U] * known_U
        weights_U = tables["weights"][indices_U] * known_U
        if "probabilities" in tables:
            p_UK = tables["probabilities"][indices_U].float() * known_U[:, None]
        else:  # what a named class leaves over is spread evenly, where it counts
            num_others = max(self._num_file_classes - 1, 1)
            left_U = torch.zeros_like(confidence_U) if section.hard else (1 - confidence_U) * known_U / num_others
            p_UK = left_U[:, None].repeat(1, self._num_file_classes).scatter(1, classes_U[:, None], confidence_U[:, None])
        scores_UK = p_UK.scatter(1, classes_U[:, None], confidence_U[:, None])  # to all digits, as thresholds see it
        return PseudoLabel(classes_U if section.hard else p_UK, classes_U, weights_U, scores_UK)

    def _add_file_labels(self, outcome: Results, step: Step, weights: LossWeights) -> Results:
        """Adds Lf: each student's strong views learn what the file says of the video, where it is sure enough."""
        if not self.section.file_label.weight:
            return outcome
        label = self._look_up_file_labels(step.unlabeled.videos)
        outcome = outcome | {f"{SCORES}/file": label.scores}
        if not weights.file_label:
            return outcome
        losses = compute_pseudo_label_losses(step.strong, dict.fromkeys(STUDENTS, label))
        losses = {name.replace("pseudo_label", "file_label"): value for name, value in losses.items()}
        total = outcome["loss"] + weights.file_label * sum_terms(losses)
        watched = compute_direction_monitors("file_to_both", label, step.unlabeled.hidden_labels)
        return collect_results(total, outcome, losses, watched) | {"loss": total}

    def _reach_heads(self, loss: torch.Tensor) -> torch.Tensor:
        """Adds a gradient of zeros to projection heads, which only contrast terms use."""
        heads: list[Any] = [student.projection for student in self.students.values() if hasattr(student, "projection")]
        zero = sum((0 * parameter.sum() for head in heads for parameter in head.parameters()), start=0.0)
        return loss + zero if heads else loss
