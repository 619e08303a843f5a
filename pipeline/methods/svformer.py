"""SVFormer (Xing et al., CVPR 2023): an EMA teacher labels strong views, and clips that are mixed in tubes of patches.

The paper is about one network. Here each student is such a network on its own. A tube is a patch at the same position in all
frames; mixing pixels on the patch grid mixes the transformer's tokens. The temporal warp is a strong view:
``views.strong.time.warp: [2, 4, 8]``.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import STUDENTS
from pipeline.methods.parts.forward import freeze_statistics
from pipeline.methods.parts.inputs import LossWeights, Setup, Step
from pipeline.methods.parts.losses import compute_consistency_loss
from pipeline.methods.parts.method import Method
from pipeline.methods.parts.monitors import compute_label_monitors
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.methods.parts.terms import Results, collect_results, compute_pseudo_label_losses, sum_terms


class SVFormer(Method):
    """L = Ls + gamma Lu + mix.weight Lmix for each student."""

    TERMS = ("pseudo_label", "mix")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students, setup)
        self.labels = PseudoLabels(students, setup, source="ema")

    def forward_unlabeled(self, step: Step, weights: LossWeights) -> Results:
        """Trains a student's strong views with its teacher's labels, and mixed clips with the teacher's probabilities mixed
        likewise."""
        unlabeled = step.unlabeled
        with torch.no_grad():
            probabilities = self.labels.predict_probabilities(step.weak, unlabeled.weak)
            pseudo_labels = self.labels.apply_thresholds(probabilities, unlabeled.videos, step.true_labels)
        given = {learner: pseudo_labels[labeler] for learner, labeler in self.labels.labelers.items()}
        pseudo_label = compute_pseudo_label_losses(step.strong, given)
        mixed = {}
        for name in STUDENTS:
            clips, shares = mix_tubes(unlabeled.strong[name], self.section.mix.patch, self.section.mix.concentration)
            own = probabilities[name]
            targets = shares[:, None] * own + (1 - shares[:, None]) * own.roll(1, dims=0)
            with torch.set_grad_enabled(weights.mix > 0), freeze_statistics(self.students[name]):
                logits = self.students[name](clips)[0]
            mixed[f"mix_loss/{name}"] = compute_consistency_loss(logits, targets, self.section.mix.consistency)
        loss = weights.supervised * sum_terms(step.supervised) + weights.pseudo_label * sum_terms(pseudo_label)
        loss = loss + weights.mix * sum_terms(mixed)
        watched = compute_label_monitors(given, self.labels.labelers, unlabeled.hidden_labels)
        return collect_results(loss, step.supervised, pseudo_label, mixed, watched)


def mix_tubes(clips_NCTHW: torch.Tensor, patch: int, concentration: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces some tubes of each clip by those of the clip before it, and returns the share [N] of its own tubes; drawn from
    torch's seed.

    The share is drawn from Beta(concentration, concentration) and rounded to whole tubes, which are chosen uniformly.
    """
    number, (height, width), device = len(clips_NCTHW), clips_NCTHW.shape[3:], clips_NCTHW.device
    rows, columns = -(-height // patch), -(-width // patch)
    both = torch.full((2,), concentration, device=device)  # drawn where the clips are: nothing waits for a copy
    wanted = torch.distributions.Beta(both[0], both[1], validate_args=False).sample((number, 1))
    order = torch.rand(number, rows * columns, device=device).argsort(dim=1).argsort(dim=1)
    own = order < (wanted * rows * columns).round()
    tubes = own.view(number, rows, columns).repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :height, :width]
    mixed = torch.where(tubes[:, None, None], clips_NCTHW, clips_NCTHW.roll(1, dims=0))
    return mixed, tubes.flatten(1).float().mean(dim=1)
