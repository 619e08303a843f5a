"""Decides which pseudo-labels and which labels of a file count, and how much: threshold policies and distribution alignment,
as statistics and pure functions.

p is a softmax vector, c its largest value and k its class. The state of a policy is a few buffers, which are part of every
checkpoint and the same on all workers, because each is computed from all workers' predictions.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.collectives import gather
from pipeline.config import FileLabelSection, LabelSection
from pipeline.manifest.label_file import FileLabels


class LabelPolicy(nn.Module):
    """Aligns the probabilities of one labeler's weak views, and computes the weight (0..1) of each clip's label."""

    predicted: torch.Tensor
    """[K] running mean of p, for distribution alignment."""
    target: torch.Tensor
    """[K] distribution with which ``predicted`` is aligned."""
    last_label: torch.Tensor
    """[V] int32, FlexMatch: each video's last confident class or -1, by manifest row."""
    class_confidence: torch.Tensor
    """[K] running mean of p, FreeMatch."""
    confidence: torch.Tensor
    """Running mean of c, FreeMatch and SoftMatch."""
    variance: torch.Tensor
    """Running variance of c, SoftMatch."""

    def __init__(self, section: LabelSection, threshold: float, num_classes: int, num_videos: int, num_unlabeled: int) -> None:
        super().__init__()
        self.section, self.threshold, self.num_unlabeled = section, threshold, num_unlabeled
        uniform = torch.full((num_classes,), 1 / num_classes)
        if section.distribution_alignment != "off":
            self.register_buffer("predicted", uniform.clone())
            self.register_buffer("target", uniform.clone())
        if section.thresholds == "flexmatch":
            self.register_buffer("last_label", torch.full((num_videos,), -1, dtype=torch.int32))
        if section.thresholds == "freematch":
            self.register_buffer("class_confidence", uniform.clone())
        if section.thresholds in ("freematch", "softmatch"):
            self.register_buffer("confidence", torch.tensor(1 / num_classes))
        if section.thresholds == "softmatch":
            self.register_buffer("variance", torch.tensor(1.0))

    @torch.no_grad()
    def forward(
        self, weak_UK: torch.Tensor, videos_U: torch.Tensor, labels_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns p [U, K], weights [U] and the thresholds [U] with which c was compared, after updating the statistics."""
        p_UK = weak_UK
        if self.section.distribution_alignment != "off":
            self._update_mean("predicted", gather(p_UK).mean(dim=0))
            if self.section.distribution_alignment == "labeled":
                counts = count_classes(gather(labels_B), p_UK.shape[1])
                self._update_mean("target", counts / counts.sum())
            p_UK = align_probabilities(p_UK, self.predicted, self.target)
        confidence_U, classes_U = p_UK.max(dim=1)
        policies = {
            "fixed": self._fixed, "flexmatch": self._flexmatch, "freematch": self._freematch, "softmatch": self._softmatch,
        }  # fmt: skip
        weights_U, thresholds_U = policies[self.section.thresholds](p_UK, confidence_U, classes_U, videos_U)
        return p_UK, weights_U, thresholds_U

    def _fixed(
        self, p: torch.Tensor, c: torch.Tensor, k: torch.Tensor, videos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (c >= self.threshold).float(), torch.full_like(c, self.threshold)

    def _flexmatch(
        self, p: torch.Tensor, c: torch.Tensor, k: torch.Tensor, videos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        thresholds = self.threshold * compute_flexmatch_share(self.last_label, p.shape[1], self.num_unlabeled)[k]
        remember_labels(self.last_label, gather(videos), gather(k), gather(c) >= self.threshold)
        return (c >= thresholds).float(), thresholds

    def _freematch(
        self, p: torch.Tensor, c: torch.Tensor, k: torch.Tensor, videos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._update_mean("confidence", gather(c).mean())
        self._update_mean("class_confidence", gather(p).mean(dim=0))
        thresholds = compute_freematch_thresholds(self.confidence, self.class_confidence)[k]
        return (c >= thresholds).float(), thresholds

    def _softmatch(
        self, p: torch.Tensor, c: torch.Tensor, k: torch.Tensor, videos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        c_G = gather(c)
        self._update_mean("confidence", c_G.mean())
        self._update_mean("variance", c_G.var() if len(c_G) > 1 else torch.zeros_like(self.variance))
        return compute_softmatch_weights(c, self.confidence, self.variance), self.confidence.repeat(len(c))

    def _update_mean(self, name: str, value: torch.Tensor) -> None:
        buffer = getattr(self, name)
        buffer.mul_(self.section.momentum).add_(value, alpha=1 - self.section.momentum)


def align_probabilities(p_UK: torch.Tensor, predicted_K: torch.Tensor, target_K: torch.Tensor) -> torch.Tensor:
    """Computes p * target / predicted, normalized (ReMixMatch, Berthelot et al. 2020).

    The label is taken from it as well, as there; SoftMatch's code aligns for the weights only (choice).
    """
    raw = p_UK * (target_K / predicted_K.clamp(min=1e-6))
    return raw / raw.sum(dim=1, keepdim=True)


def count_classes(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts how often each class occurs [K] int64 among labels of -1 (not counted) to K - 1; ``bincount`` would wait for the
    device."""
    counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, labels.long() + 1, counts.new_ones(1).expand(len(labels)))[1:]


def remember_labels(last_label_V: torch.Tensor, videos_G: torch.Tensor, classes_G: torch.Tensor, sure_G: torch.Tensor) -> None:
    """Stores, in place, the class of each confident clip as its video's last label; of several clips of a video the last
    confident one's.

    All clips write: those that are not confident write what is there already, because selecting clips would wait for the
    device.
    """
    turns_G = torch.arange(1, len(videos_G) + 1, device=videos_G.device)
    last_sure_G = ((videos_G[:, None] == videos_G) * (turns_G * sure_G)).amax(dim=1)  # counted from 1; 0 if there is none
    earlier_G = last_label_V[videos_G]
    last_label_V[videos_G] = torch.where(last_sure_G > 0, classes_G[(last_sure_G - 1).clamp(min=0)].to(torch.int32), earlier_G)


def compute_flexmatch_share(last_label_V: torch.Tensor, num_classes: int, num_unlabeled: int) -> torch.Tensor:
    """Computes the share [K] b / (2 - b) of the threshold (FlexMatch, Zhang et al. 2021, eqs. 6, 7, 10, 11).

    b is a class's number of confident videos over the largest such number, or over the number of videos never confident while
    that is larger (threshold warm-up). ``last_label_V`` [V] holds each video's last confident label or -1.
    """
    counts = count_classes(last_label_V, num_classes)
    unused = num_unlabeled - counts.sum()
    b = counts / torch.maximum(counts.max(), unused).clamp(min=1)
    return b / (2 - b)


def compute_freematch_thresholds(confidence: torch.Tensor, class_confidence_K: torch.Tensor) -> torch.Tensor:
    """Computes the thresholds [K] from the means of c and p (FreeMatch, Wang et al. 2023)."""
    return confidence * class_confidence_K / class_confidence_K.max()


def compute_softmatch_weights(c_U: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Computes weights of 1 from the mean on, and exp(-(c - mean)^2 / (2 variance / 4)) below it (SoftMatch, Chen et al. 2023,
    n = 2 deviations)."""
    below = (c_U - mean).clamp(max=0)
    return torch.exp(-below.square() / (2 * variance.clamp(min=1e-12) / 4))


def weigh_file_labels(section: FileLabelSection, labels: FileLabels) -> torch.Tensor:
    """Computes the weights [N] (0..1) of the labels that a file gives, as ``method.file_label.thresholds`` says.

    Since a file never changes, the means and the variance that ``LabelPolicy`` follows over steps are computed from the whole
    file: the weights are the same in every step, on all workers and after a resume. Labels of confidence 0 never count.
    """
    c_N, k_N = torch.from_numpy(labels.confidence), torch.from_numpy(labels.classes).long()
    exact = c_N.double()  # in float32 the mean of equal confidences may come out above all of them
    mean, variance = exact.mean().float(), exact.var(correction=0).float()
    if section.thresholds == "softmatch":
        weights_N = compute_softmatch_weights(c_N, mean, variance)
    elif section.thresholds == "freematch":
        weights_N = (c_N >= compute_freematch_thresholds(mean, torch.from_numpy(labels.class_means))[k_N]).float()
    else:
        weights_N = (c_N >= section.threshold).float()
    return weights_N * (c_N > 0)
