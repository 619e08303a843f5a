"""Makes views with torchvision's operations on tensors, a clip at a time on the CPU, as data sets of today do."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pipeline.bench.peers.requests import VideoRequest, ViewRequest
from pipeline.clips.normalization import MEAN, STD

LEVELS = 31
"""The number of levels of magnitude of torchvision's RandAugment."""


def make_view_of_frames(frames_TCHW: torch.Tensor, video_request: VideoRequest, request: ViewRequest) -> torch.Tensor:
    """Makes a view of a clip's frames.

    The shorter side is scaled at random, a random square is cut and mirrored at random; strong views are then augmented by
    RandAugment and cutout.

    Args:
        frames_TCHW: The frames, uint8, or float32 from 0 to 1. They keep their type until they are normalized.
        video_request: The video, with the settings of its views.
        request: The view.

    Returns:
        The normalized view, float32 [C, T, size, size].
    """
    generator = np.random.default_rng(request.seed)
    size, strong = request.clip.size, video_request.views.strong
    short = round(size / generator.uniform(video_request.views.weak.min_scale, 1))
    height, width = frames_TCHW.shape[2:]
    scaled = [max(size, round(edge * short / min(height, width))) for edge in (height, width)]
    top, left = (int(generator.integers(0, edge - size + 1)) for edge in scaled)
    clip = functional.resize(frames_TCHW, scaled, antialias=False)
    clip = functional.crop(clip, top, left, size, size)
    if generator.random() < video_request.views.weak.flip:
        clip = functional.horizontal_flip(clip)
    if request.strong and strong.ops:
        torch.manual_seed(request.seed >> 1)
        clip = v2.RandAugment(strong.ops, round((LEVELS - 1) * strong.magnitude), LEVELS)(clip)
    clip = functional.normalize(functional.to_dtype(clip, torch.float32, scale=True), [MEAN] * 3, [STD] * 3)
    if request.strong and strong.cutout:
        side = round(size * strong.cutout / 2)
        top, left = (int(edge) for edge in generator.integers(0, size - side + 1, 2))
        clip[:, :, top : top + side, left : left + side] = 0
    view: torch.Tensor = clip.transpose(0, 1).contiguous()
    return view
