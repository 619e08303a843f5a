"""The students: networks that compute logits [N, K] and features [N, D] from clips [N, C, T, H, W]."""

from __future__ import annotations

from pipeline.config import ClipSection, Network, PlainConv3dSection, SlowResNetSection, TimeSformerSection
from pipeline.students.plain_conv3d import PlainConv3d
from pipeline.students.slow_resnet import SlowResNet
from pipeline.students.timesformer import TimeSformer
from pipeline.students.video_resnet import VideoResNet
from pipeline.students.weights import load_weights

Student = SlowResNet | TimeSformer | VideoResNet | PlainConv3d

__all__ = ["PlainConv3d", "SlowResNet", "Student", "TimeSformer", "VideoResNet", "build_student", "load_weights"]


def build_student(network: Network, clip: ClipSection, num_classes: int) -> Student:
    """Builds a new student with weights from torch's seed, which the caller sets; ``load_weights`` replaces them.

    ``forward(clips_NCTHW)`` takes float clips of ``clip``'s shape, normalized as in ``pipeline.clips.views``, and returns
    ``(logits_NK, features_ND)``. ``num_features`` is its D and ``head`` its classifier. With ``per_frame`` it returns features
    [N, L, D] of L moments, evenly spaced over the clip.
    """
    if isinstance(network, SlowResNetSection):
        return SlowResNet(network, num_classes)
    if isinstance(network, TimeSformerSection):
        return TimeSformer(network, clip, num_classes)
    if isinstance(network, PlainConv3dSection):
        return PlainConv3d(network, num_classes)
    return VideoResNet(network, num_classes)
