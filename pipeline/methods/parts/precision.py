"""The numbers that forward passes compute with: ``train.precision``, in training as in evaluation."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.clips.modalities import derive_modality
from pipeline.clips.views import make_center_views
from pipeline.config import ClipSection, TrainSection

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the context in which forward passes are computed in ``train.precision``."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def center_logits(student: nn.Module, clips_NTHWC: torch.Tensor, clip: ClipSection, train: TrainSection) -> torch.Tensor:
    """Computes the logits [N, K] float32 of the center squares of uint8 test clips, in the run's precision.

    ``student`` is in eval mode.
    """
    # as training lays them out; on a CPU that only changes the rounding
    last = train.channels_last and clips_NTHWC.device.type == "cuda"
    layout = torch.channels_last_3d if last else torch.contiguous_format
    views = derive_modality(make_center_views(clips_NTHWC, clip.size, layout), clip.modality)
    with autocast(clips_NTHWC.device, train.precision):
        logits_NK, _ = student(views)
    found: torch.Tensor = logits_NK.float()
    return found
