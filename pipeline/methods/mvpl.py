"""MvPL (Xiong et al., ICCV 2021): one network sees RGB, temporal gradient and flow; their mean labels every one of them.

It is about one network: here each student is one, for itself. RGB alone is tested, so only RGB moves BatchNorm's running
statistics (choice: with a mixture of modalities in them the network would be normalized for none).
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.clips.modalities import Modality, derive_modality
from pipeline.errors import UserError
from pipeline.methods.parts.forward import frozen_statistics
from pipeline.methods.parts.inputs import STUDENTS, LossWeights, Output, Outputs, Setup, Step, Views
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import label_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Losses, Results, pseudo_label_losses, results, total


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
        """Outputs by ``student`` for RGB, by ``student/modality`` for what is derived of it; weak views without gradient."""
        labeled = self._see_modalities(views.labeled)
        if views.unlabeled is None or not self.counts_unlabeled(views, weights):
            return labeled, {}, {}
        with torch.no_grad():
            weak = self._see_modalities(views.unlabeled.weak)
        return labeled, weak, self._see_modalities(views.unlabeled.strong, strong=True)

    def supervised_losses(self, labeled: Outputs, views: Views) -> Losses:
        """The means over modalities, and ``supervised_loss/{student}/{modality}``."""
        each = {kind: super(MvPL, self).supervised_losses(_of(labeled, kind), views) for kind in self.section.modalities}
        return _mean(each) | {f"{key}/{kind}": value for kind, terms in each.items() for key, value in terms.items()}

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """The mean of what a student predicts of all modalities labels its strong view in each of them."""
        unlabeled, modalities = step.unlabeled, self.section.modalities
        with torch.no_grad():
            predicted = []
            for kind in modalities:
                seen = {name: derive_modality(unlabeled.weak[name], kind) for name in STUDENTS} if self.labels.teachers else {}
                predicted.append(self.labels.predict_probabilities(_of(step.weak, kind), seen))
            probabilities = {name: torch.stack([p[name] for p in predicted]).mean(dim=0) for name in STUDENTS}
            labels = self.labels.apply_thresholds(probabilities, unlabeled.videos, step.labels)
        given = {learner: labels[labeler] for learner, labeler in self.labels.labelers.items()}
        pseudo_label = _mean({kind: pseudo_label_losses(_of(step.strong, kind), given) for kind in modalities})
        loss = weights.supervised * total(step.supervised) + weights.pseudo_label * total(pseudo_label)
        watched = label_monitors(given, self.labels.labelers, unlabeled.hidden_labels)
        return results(loss, step.supervised, pseudo_label, watched)

    def _see_modalities(self, clips: dict[str, torch.Tensor], strong: bool = False) -> Outputs:
        outputs: Outputs = {}
        for kind in self.section.modalities:
            for name in STUDENTS:
                student = self.students[name]
                if strong or kind != "rgb":
                    with frozen_statistics(student):
                        outputs[_key(name, kind)] = Output(*student(derive_modality(clips[name], kind)))
                else:
                    outputs[name] = Output(*student(clips[name]))
        return outputs


def _key(name: str, kind: Modality) -> str:
    return name if kind == "rgb" else f"{name}/{kind}"


def _of(outputs: Outputs, kind: Modality) -> Outputs:
    return {name: outputs[_key(name, kind)] for name in STUDENTS}


def _mean(terms: dict[Modality, Losses]) -> Losses:
    return {key: torch.stack([part[key] for part in terms.values()]).mean() for key in next(iter(terms.values()))}
