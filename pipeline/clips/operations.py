"""RandAugment's operations (Cubuk et al., 2020), by torchvision, for clips instead of images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import functional as appearance

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _rotate(share: float) -> Matrix:
    angle = np.deg2rad(30 * share)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def _shear_x(share: float) -> Matrix:
    return np.array([[1, 0.3 * share, 0], [0, 1, 0], [0, 0, 1]])


def _shear_y(share: float) -> Matrix:
    return _shear_x(share).T


def _translate_x(share: float) -> Matrix:
    return np.array([[1, 0, 0.9 * share], [0, 1, 0], [0, 0, 1]])


def _translate_y(share: float) -> Matrix:
    return np.array([[1, 0, 0], [0, 1, 0.9 * share], [0, 0, 1]])


def _identity(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
    return clip_TCHW


def _brightness(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
    changed: torch.Tensor = appearance.adjust_brightness(clip_TCHW, 1 + 0.9 * share)
    return changed


def _color(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
    changed: torch.Tensor = appearance.adjust_saturation(clip_TCHW, 1 + 0.9 * share)
    return changed


def _sharpness(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
    changed: torch.Tensor = appearance.adjust_sharpness(clip_TCHW, 1 + 0.9 * share)
    return changed


def _solarize(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
    changed: torch.Tensor = appearance.solarize(clip_TCHW, 1 - abs(share))
    return changed


def _posterize(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
    changed: torch.Tensor = appearance.posterize(clip_TCHW, 8 - round(4 * abs(share)))
    return changed


def _whole_clip(operation: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """For operations that measure the image: measure the clip, or frames would be changed differently."""

    def apply(clip_TCHW: torch.Tensor, share: float) -> torch.Tensor:
        tall_CHW = clip_TCHW.transpose(0, 1).flatten(1, 2)
        return torch.unflatten(operation(tall_CHW, share), 1, (len(clip_TCHW), -1)).transpose(0, 1)

    return apply


GEOMETRIC: dict[str, Callable[[float], Matrix]] = {
    "rotate": _rotate, "shear_x": _shear_x, "shear_y": _shear_y, "translate_x": _translate_x, "translate_y": _translate_y,
}  # fmt: skip
"""Operation -> [3, 3] map for a strength in -1..1; full strength is torchvision's RandAugment's (30 degrees, 0.3, 45 %)."""
APPEARANCE: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "identity": _identity, "brightness": _brightness, "color": _color, "sharpness": _sharpness,
    "solarize": _solarize, "posterize": _posterize,
    "contrast": _whole_clip(lambda clip, share: appearance.adjust_contrast(clip, 1 + 0.9 * share)),
    "autocontrast": _whole_clip(lambda clip, share: appearance.autocontrast(clip)),
    "equalize": _whole_clip(lambda clip, share: appearance.equalize(clip)),
}  # fmt: skip
"""Operation -> function of a clip [T, C, H, W] in 0..1 and a strength in -1..1."""
OPERATIONS = (*APPEARANCE, *GEOMETRIC)
"""All names; ``views.strong.without`` takes some out."""
