"""MvPL (Xiong et al., ICCV 2021): one network sees RGB, temporal gradient and flow; their mean labels every one of them.

It is about one network: here each student is one, for itself. RGB alone is tested, so only RGB moves BatchNorm's running
statistics (choice: with a mixture of modalities in them the network would be normalized for none).
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.clips.modalities import Modality, derive
from pipeline.errors import UserError
from pipeline.methods.inputs import STUDENTS, LossWeights, Method, Outputs, Setup, Views
from pipeline.methods.labels import Labels, PseudoLabels
from pipeline.methods.monitors import Monitors, student_monitors
from pipeline.methods.parts import pseudo_label_terms, results, supervised_terms, total
from pipeline.methods.passes import frozen_statistics


class MvPL(Method):
    """L = mean over modalities of (Ls + gamma Lu), for each student; labels from the mean of the modalities' softmax."""

    TERMS = ("pseudo_label",)

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)
        for name in STUDENTS:
            if (seen := getattr(setup.config, name).clip.modality) != "rgb":
                raise UserError(f"{name}.clip.modality={seen}: mvpl derives modalities itself; set rgb, and method.modalities")
        self.section = setup.method
        self.labels = PseudoLabels(students, setup, source="self")

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and parts and monitors without: the modalities' means; ``supervised_loss`` of each, too."""
        self.labels.follow(self.students)
        labeled = {kind: supervised_terms(self._see(views.labeled, kind), views) for kind in self.section.modalities}
        supervised = _mean(labeled)
        each = {f"{key}/{kind}": value for kind, terms in labeled.items() for key, value in terms.items()}
        if views.weak is None or views.strong is None or views.hidden_labels is None or not weights.use_unlabeled:
            return results(weights.supervised * total(supervised), supervised, each)
        with torch.no_grad():
            weak = {kind: self._see(views.weak, kind) for kind in self.section.modalities}
            labels = self._label(weak, views)
        pseudo_label: dict[Modality, Monitors] = {}
        masks: Monitors = {}
        for kind in self.section.modalities:
            pseudo_label[kind], masks = pseudo_label_terms(self._see(views.strong, kind, True), labels, views.hidden_labels)
        loss = weights.supervised * total(supervised) + weights.pseudo_label * total(_mean(pseudo_label))
        watched = student_monitors(weak["rgb"], views.hidden_labels)
        return results(loss, supervised, each, _mean(pseudo_label), masks, watched)

    def _label(self, weak: dict[Modality, Outputs], views: Views) -> dict[str, Labels]:
        assert views.weak is not None
        said = []
        for kind in self.section.modalities:
            seen = {name: derive(views.weak[name], kind) for name in STUDENTS} if self.labels.teachers else {}
            said.append(self.labels.say(weak[kind], seen))
        mean = {name: torch.stack([p[name] for p in said]).mean(dim=0) for name in STUDENTS}
        found: dict[str, Labels] = self.labels(mean, views)
        return found

    def _see(self, clips: dict[str, torch.Tensor], kind: Modality, strong: bool = False) -> Outputs:
        outputs: Outputs = {}
        for name in STUDENTS:
            student = self.students[name]
            if strong or kind != "rgb":
                with frozen_statistics(student):
                    outputs[name] = student(derive(clips[name], kind))
            else:
                outputs[name] = student(clips[name])
        return outputs


def _mean(terms: dict[Modality, Monitors]) -> Monitors:
    return {key: torch.stack([part[key] for part in terms.values()]).mean() for key in next(iter(terms.values()))}
