"""The base class of all methods: what each of them does in every step, so that its file shows only what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import STUDENTS
from pipeline.methods.parts.forward import pass_views
from pipeline.methods.parts.inputs import LossWeights, Outputs, Setup, Step, Views
from pipeline.methods.parts.monitors import compute_direction_monitors, compute_student_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabel, PseudoLabels
from pipeline.methods.parts.terms import Losses, Results, collect_results, pseudo_label_losses, sum_terms, supervised_losses


class Method(nn.Module):
    """Both students with a loss. A method names its ``TERMS`` and implements ``forward_unlabeled``; this class does the rest.

    ``forward`` updates EMA teachers, passes the views through the students and computes the supervised losses. A step without
    losses of unlabeled videos ends there; otherwise ``forward_unlabeled`` continues. Projection heads always get a gradient,
    if only of zeros, because DDP waits for the gradient of every parameter.
    """

    TERMS: ClassVar[tuple[str, ...]] = ()
    """The losses of unlabeled videos that the method has, by the names of their weights; none if it uses labels only."""
    file_probabilities: torch.Tensor
    """[V, K] what ``method.file_label.file`` says of each video; only if its loss has a weight."""
    students: nn.ModuleDict
    """``primary`` and ``auxiliary``, with their projection heads if any."""

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__()
        self.students = students
        self.section = setup.method

    def forward(self, views: Views, weights: LossWeights) -> Results:
        """Returns ``loss`` with gradient, and without gradient everything that metrics.jsonl shows, with unweighted losses.

        If the step has losses of unlabeled videos, ``scores/{student}`` [U, K] are the students' predictions for weak views.
        """
        for part in self.children():
            if isinstance(part, PseudoLabels):
                part.update_ema(self.students)
        labeled, weak, strong = self.run_students(views, weights)
        supervised = self.supervised_losses(labeled, views)
        if views.unlabeled is None or not weak:
            outcome = collect_results(weights.supervised * sum_terms(supervised), supervised)
        else:
            step = Step(views.labels, views.unlabeled, labeled, weak, strong, supervised)
            own = {name: weak[name] for name in STUDENTS}
            outcome = self.forward_unlabeled(step, weights) | compute_student_monitors(own, views.unlabeled.hidden_labels)
            outcome = self._add_file_labels(outcome, step, weights)
        return {**outcome, "loss": self._reach_heads(outcome["loss"])}

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Returns the whole loss of a step with losses of unlabeled videos, and the monitored quantities, as ``results``
        does."""
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

    def supervised_losses(self, labeled: Outputs, views: Views) -> Losses:
        """Computes Ls: ``supervised_loss/{student}``, with gradient."""
        return supervised_losses(labeled, views, self.section.supervised.label_smoothing)

    def take_file_labels(self, probabilities: NDArray[np.float32] | None, num_classes: int, num_videos: int) -> None:
        """Takes the class probabilities [V, K] that a file gives, by row of the manifest; None: zeros of that size.

        They are no part of a checkpoint: a run reads its file again, and knows it by its fingerprint.
        """
        table = torch.zeros(num_videos, num_classes) if probabilities is None else torch.from_numpy(probabilities)
        self.register_buffer("file_probabilities", table, persistent=False)

    def _add_file_labels(self, outcome: Results, step: Step, weights: LossWeights) -> Results:
        """Adds Lf: each student's strong views learn what the file says of the video, where it is sure enough."""
        if not weights.file_label:
            return outcome
        section = self.section.file_label
        p_UK = self.file_probabilities[step.unlabeled.videos]
        confidence_U, classes_U = p_UK.max(dim=1)
        kept_U = ((confidence_U >= section.threshold) & (confidence_U > 0)).float()  # zeros: the file says nothing
        label = PseudoLabel(classes_U if section.hard else p_UK, classes_U, kept_U, p_UK)
        losses = pseudo_label_losses(step.strong, dict.fromkeys(STUDENTS, label))
        losses = {name.replace("pseudo_label", "file_label"): value for name, value in losses.items()}
        total = outcome["loss"] + weights.file_label * sum_terms(losses)
        watched = compute_direction_monitors("file_to_both", label, step.unlabeled.hidden_labels)
        return collect_results(total, outcome, losses, watched) | {"loss": total}

    def _reach_heads(self, loss: torch.Tensor) -> torch.Tensor:
        """Adds a gradient of zeros to projection heads, which only contrast terms use."""
        heads: list[Any] = [student.projection for student in self.students.values() if hasattr(student, "projection")]
        zero = sum((0 * parameter.sum() for head in heads for parameter in head.parameters()), start=0.0)
        return loss + zero if heads else loss
