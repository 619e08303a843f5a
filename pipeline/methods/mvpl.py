"""MvPL (Xiong et al., ICCV 2021): one network sees RGB, temporal gradient and flow; the mean of its predictions labels all of
them.

The paper is about one network. Here each student is such a network on its own. Only RGB is tested, so only RGB updates
BatchNorm's running statistics (choice: with a mixture of modalities in them the network would be normalized for none).
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.clips.modalities import Modality, derive_modality
from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.methods.parts.forward import freeze_statistics
from pipeline.methods.parts.inputs import LossWeights, Output, Outputs, Setup, Step, Views
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import compute_label_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Losses, Results, collect_results, compute_pseudo_label_losses, sum_terms


class MvPL(Method):
    """L = mean over modalities of (Ls + gamma Lu), for each student; labels from the mean of the modalities' softmax."""

    TERMS = ("pseudo_label",)

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students, setup)
        for name in STUDENTS:
            if (seen := getattr(setup.config, name).clip.modality) != "rgb":
                raise UserError(f"{name}.clip.modality={seen}: mvpl derives modalities itself; set rgb, and method.modalities")
        self.labels = PseudoLabels(students, setup, source="self")

    def run_students(self, views: Views, weights: LossWeights) -> tuple[Outputs, Outputs, Outputs]:
        """Returns outputs by ``student`` for RGB and by ``student/modality`` for modalities derived from it; weak views have
        no gradient."""
        labeled = self._see_modalities(views.labeled)
        if views.unlabeled is None or not self.has_unlabeled_losses(views, weights):
            return labeled, {}, {}
        with torch.no_grad():
            weak = self._see_modalities(views.unlabeled.weak)
        return labeled, weak, self._see_modalities(views.unlabeled.strong, strong=True)

    def compute_supervised_losses(self, labeled: Outputs, views: Views) -> Losses:
        """Computes the means over modalities, and ``supervised_loss/{student}/{modality}``."""
        each: dict[Modality, Losses] = {}
        for kind in self.section.modalities:
            each[kind] = super().compute_supervised_losses(_select_modality(labeled, kind), views)
        named = {f"{key}/{kind}": value for kind, terms in each.items() for key, value in terms.items()}
        return _average_over_modalities(each) | named

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Labels a student's strong view in each modality by the mean of its predictions for all modalities."""
        unlabeled, modalities = step.unlabeled, self.section.modalities
        with torch.no_grad():
            predicted = []
            for kind in modalities:
                seen = {name: derive_modality(unlabeled.weak[name], kind) for name in STUDENTS} if self.labels.teachers else {}
                predicted.append(self.labels.predict_probabilities(_select_modality(step.weak, kind), seen))
            probabilities = {name: torch.stack([p[name] for p in predicted]).mean(dim=0) for name in STUDENTS}
            pseudo_labels = self.labels.apply_thresholds(probabilities, unlabeled.videos, step.true_labels)
        given = {learner: pseudo_labels[labeler] for learner, labeler in self.labels.labelers.items()}
        each = {kind: compute_pseudo_label_losses(_select_modality(step.strong, kind), given) for kind in modalities}
        pseudo_label = _average_over_modalities(each)
        loss = weights.supervised * sum_terms(step.supervised) + weights.pseudo_label * sum_terms(pseudo_label)
        watched = compute_label_monitors(given, self.labels.labelers, unlabeled.hidden_labels)
        return collect_results(loss, step.supervised, pseudo_label, watched)

    def _see_modalities(self, clips: dict[str, torch.Tensor], strong: bool = False) -> Outputs:
        outputs: Outputs = {}
        for kind in self.section.modalities:
            for name in STUDENTS:
                student = self.students[name]
                if strong or kind != "rgb":
                    with freeze_statistics(student):
                        outputs[_name_output(name, kind)] = Output(*student(derive_modality(clips[name], kind)))
                else:
                    outputs[name] = Output(*student(clips[name]))
        return outputs


def _name_output(name: str, kind: Modality) -> str:
    return name if kind == "rgb" else f"{name}/{kind}"


def _select_modality(outputs: Outputs, kind: Modality) -> Outputs:
    return {name: outputs[_name_output(name, kind)] for name in STUDENTS}


def _average_over_modalities(terms: dict[Modality, Losses]) -> Losses:
    return {key: torch.stack([part[key] for part in terms.values()]).mean() for key in next(iter(terms.values()))}
