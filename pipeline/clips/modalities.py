"""Computes what networks may see instead of RGB, as 3 channels made of a view's frames: [N, C, T, H, W] to the same shape.

Made of the view and not of the decoded clip, so that a strong view's distortion is in its derived modality too (choice; MvPL
and LTG do not say). T frames have T - 1 differences: the last one is repeated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.clips.normalization import MEAN, STD
from pipeline.errors import UserError

Modality = Literal["rgb", "temporal_gradient", "optical_flow"]
FULL_FLOW = 1 / 16
"""Motion per frame, as a share of the view's side, that becomes 1. Choice: such values have a spread like RGB's."""


def check_modalities(names: Sequence[Modality]) -> None:
    """Raises UserError if one of them needs what is not installed: before a run starts, not at its first view."""
    if "optical_flow" in names and importlib.util.find_spec("cv2") is None:
        raise UserError("optical_flow needs OpenCV: pip install 'actnetformer[flow]', or choose temporal_gradient")


def derive_modality(views_NCTHW: torch.Tensor, modality: Modality) -> torch.Tensor:
    """Computes the modality of normalized RGB views."""
    if modality == "rgb":
        return views_NCTHW
    return {"temporal_gradient": compute_temporal_gradient, "optical_flow": compute_optical_flow}[modality](views_NCTHW)


def compute_temporal_gradient(views_NCTHW: torch.Tensor) -> torch.Tensor:
    """Computes the differences of neighboring frames, per color (LTG, Xiao et al. 2022); 0 for a single frame."""
    if views_NCTHW.shape[2] == 1:
        return torch.zeros_like(views_NCTHW)
    differences = views_NCTHW[:, :, 1:] - views_NCTHW[:, :, :-1]
    return torch.cat([differences, differences[:, :, -1:]], dim=2)


def compute_optical_flow(views_NCTHW: torch.Tensor) -> torch.Tensor:
    """Computes the motion to the next frame by DIS (Kroeger et al., ECCV 2016): x, y and length, in units of ``FULL_FLOW``.

    OpenCV computes it on the CPU, whatever device the views are on.
    """
    if views_NCTHW.shape[2] == 1:
        return torch.zeros_like(views_NCTHW)
    gray = (views_NCTHW.detach().cpu() * STD + MEAN).clamp(0, 1).mul(255).mean(dim=1).byte().numpy()
    flows = np.stack([_compute_clip_flow(frames_THW) for frames_THW in gray]) / (FULL_FLOW * gray.shape[-1])
    length = np.linalg.norm(flows, axis=-1, keepdims=True)
    channels = torch.from_numpy(np.concatenate([flows, length], axis=-1)).permute(0, 4, 1, 2, 3)
    return channels.to(views_NCTHW.device, views_NCTHW.dtype).contiguous()


def _compute_clip_flow(frames_THW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Computes [T, H, W, 2], the motion in pixels."""
    import cv2  # an optional extra

    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    nothing: Any = None  # no flow to start from
    flows = [dis.calc(frame, following, nothing) for frame, following in pairwise(frames_THW)]
    return np.stack([*flows, flows[-1]])
