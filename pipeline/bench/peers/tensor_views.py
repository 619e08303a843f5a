"""Views by torchvision's operations on tensors, a clip at a time on the CPU, as data sets of today make them."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pipeline.bench.peers.requests import VideoRequest, ViewRequest
from pipeline.clips.normalization import MEAN, STD

LEVELS = 31
"""Of torchvision's RandAugment."""


def view_of_frames(frames_TCHW: torch.Tensor, asked: VideoRequest, request: ViewRequest) -> torch.Tensor:
    """Short-side scale jitter, a random square, a mirror; RandAugment and cutout if strong. Normalized float32 [C, T, S, S].

    Frames are uint8, or float32 from 0 to 1, and stay what they are until they are normalized.
    """
    generator = np.random.default_rng(request.seed)
    size, strong = request.clip.size, asked.views.strong
    short = round(size / generator.uniform(asked.views.weak.min_scale, 1))
    height, width = frames_TCHW.shape[2:]
    scaled = [max(size, round(edge * short / min(height, width))) for edge in (height, width)]
    top, left = (int(generator.integers(0, edge - size + 1)) for edge in scaled)
    clip = functional.resize(frames_TCHW, scaled, antialias=False)
    clip = functional.crop(clip, top, left, size, size)
    if generator.random() < asked.views.weak.flip:
        clip = functional.horizontal_flip(clip)
    if request.strong and strong.ops:
        torch.manual_seed(request.seed >> 1)
        clip = v2.RandAugment(strong.ops, round((LEVELS - 1) * strong.magnitude), LEVELS)(clip)
    clip = functional.normalize(functional.to_dtype(clip, torch.float32, scale=True), [MEAN] * 3, [STD] * 3)
    if request.strong and strong.cutout:
        side = round(size * strong.cutout / 2)
        top, left = (int(place) for place in generator.integers(0, size - side + 1, 2))
        clip[:, :, top : top + side, left : left + side] = 0
    view: torch.Tensor = clip.transpose(0, 1).contiguous()
    return view
