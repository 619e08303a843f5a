"""SVFormer (Xing et al., CVPR 2023): an EMA teacher labels strong views, and clips mixed in tubes of patches.

It is about one network: here each student is one, for itself. A tube is a patch at one place in all frames; mixing pixels on
the patch grid mixes the transformer's tokens. The temporal warp is a strong view: ``views.strong.time.warp: [2, 4, 8]``.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.methods.inputs import STUDENTS, LossWeights, Method, Setup, Views
from pipeline.methods.labels import PseudoLabels
from pipeline.methods.losses import consistency_loss
from pipeline.methods.monitors import student_monitors
from pipeline.methods.parts import pseudo_label_terms, results, supervised_terms, total
from pipeline.methods.passes import frozen_statistics, pass_views


class SVFormer(Method):
    """L = Ls + gamma Lu + mix_weight Lmix for each student."""

    TERMS = ("pseudo_label", "mix")

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__(students)
        self.section = setup.method
        self.labels = PseudoLabels(students, setup, source="ema")

    def forward(self, views: Views, weights: LossWeights) -> dict[str, torch.Tensor]:
        """``loss``, with gradient, and the parts and monitors of metrics.jsonl, without gradient, unweighted."""
        self.labels.follow(self.students)
        labeled, weak, strong = pass_views(self.students, views, weights, self.section.batch_norm)
        supervised = supervised_terms(labeled, views)
        if views.weak is None or views.strong is None or views.hidden_labels is None or not weak:
            return results(weights.supervised * total(supervised), supervised)
        said = self.labels.say(weak, views.weak)
        pseudo_label, masks = pseudo_label_terms(strong, self.labels(said, views), views.hidden_labels)
        mixed = {}
        for name in STUDENTS:
            clips, shares = mix_tubes(views.strong[name], self.section.mix_patch, self.section.mix_concentration)
            targets = shares[:, None] * said[name] + (1 - shares[:, None]) * said[name].roll(1, dims=0)
            with torch.set_grad_enabled(weights.mix > 0), frozen_statistics(self.students[name]):
                logits = self.students[name](clips)[0]
            mixed[f"mix_loss/{name}"] = consistency_loss(logits, targets, self.section.mix_consistency)
        loss = weights.supervised * total(supervised) + weights.pseudo_label * total(pseudo_label) + weights.mix * total(mixed)
        return results(loss, supervised, pseudo_label, mixed, masks, student_monitors(weak, views.hidden_labels))


def mix_tubes(clips_NCTHW: torch.Tensor, patch: int, concentration: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each clip with some tubes of the clip before it, and the share [N] of its own tubes; drawn by torch's seed.

    The share is drawn from Beta(concentration, concentration) and rounded to whole tubes; which ones, uniformly.
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
