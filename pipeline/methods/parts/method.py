"""The base class of all methods: what each of them does in every step, so that its file shows only what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.methods.parts.forward import pass_views
from pipeline.methods.parts.inputs import STUDENTS, LossWeights, Outputs, Setup, Step, Views
from pipeline.methods.parts.monitors import compute_student_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Losses, Results, collect_results, sum_terms, supervised_losses


class Method(nn.Module):
    """Both students with a loss. A method names its ``TERMS`` and implements ``forward_unlabeled``; this class does the rest.

    ``forward`` updates EMA teachers, passes the views through the students and computes the supervised losses. A step without
    losses of unlabeled videos ends there; otherwise ``forward_unlabeled`` continues. Projection heads always get a gradient,
    if only of zeros, because DDP waits for the gradient of every parameter.
    """

    TERMS: ClassVar[tuple[str, ...]] = ()
    """The losses of unlabeled videos that the method has, by the names of their weights; none if it uses labels only."""
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

    def _reach_heads(self, loss: torch.Tensor) -> torch.Tensor:
        """Adds a gradient of zeros to projection heads, which only contrast terms use."""
        heads: list[Any] = [student.projection for student in self.students.values() if hasattr(student, "projection")]
        zero = sum((0 * parameter.sum() for head in heads for parameter in head.parameters()), start=0.0)
        return loss + zero if heads else loss
