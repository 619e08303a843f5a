"""The students: networks from clips [N, C, T, H, W] to logits [N, K] and features [N, D]."""

from __future__ import annotations

from pipeline.config import ClipSection, Network, SlowResNetSection
from pipeline.students.slow_resnet import SlowResNet
from pipeline.students.timesformer import TimeSformer


def build_student(network: Network, clip: ClipSection, num_classes: int) -> SlowResNet | TimeSformer:
    """A new student with weights from torch's seed, which the caller sets; ``num_features`` is its D.

    ``forward(clips_NCTHW)`` takes float clips of ``clip``'s shape, normalized as ``pipeline.clips.views`` does, and
    returns ``(logits_NK, features_ND)``.
    """
    if isinstance(network, SlowResNetSection):
        return SlowResNet(network, num_classes)
    return TimeSformer(network, clip, num_classes)
