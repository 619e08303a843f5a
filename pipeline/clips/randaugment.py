"""RandAugment's operations (Cubuk et al., 2020) as torchvision defines them, for a batch of clips instead of one image.

Each clip of a batch has a value of its own, and all are changed by the same few operator calls. Only elementwise operators,
minima, maxima and sums of integers are used: their results do not depend on how many clips are computed together, on the
device's order of summation, or on the precision that convolutions and matrix products are allowed (TF32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
CLIP = (1, 3, 4)
"""The dimensions of a channel's pixels in clips [N, T, C, H, W]. Statistics are those of a whole clip: by frame, the frames of
a clip would be changed differently."""


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


class Appearance(NamedTuple):
    """An operation that changes pixels but moves none."""

    value: Callable[[float], float]
    """Maps a strength in -1..1 to the value that ``change`` takes."""
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Changes clips [N, T, C, H, W] in 0..1, which it may overwrite, by values [N, 1, 1, 1, 1]; the result has the same shape
    and range."""


def _compute_factor(share: float) -> float:
    return 1 + 0.9 * share


def _make_gray(clips: torch.Tensor, white: float = 1) -> torch.Tensor:
    """Computes the luma of torchvision's ``rgb_to_grayscale``, [N, T, 1, H, W] in 0..``white``."""
    red, green, blue = clips.split(1, dim=2)
    gray: torch.Tensor = red.mul(0.2989 * white).add_(green, alpha=0.587 * white).add_(blue, alpha=0.114 * white)
    return gray


def _blend(clips: torch.Tensor, others: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blends in place: ``factors`` of the clips, and the rest of ``others``."""
    return clips.sub_(others).mul_(factors).add_(others)


def _change_brightness(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return clips.mul_(factors).clamp_(0, 1)


def _change_color(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return _blend(clips, _make_gray(clips), factors).clamp_(0, 1)


def _change_contrast(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    gray = _make_gray(clips, white=1 << 24)
    # a sum of integers: one of floats would depend on how many clips are summed beside each other
    total = gray.sum(dim=(1, 2, 3, 4), keepdim=True, dtype=torch.int64)
    mean: torch.Tensor = total * (1 / (1 << 24) / gray[0].numel())
    return _blend(clips, mean, factors).clamp_(0, 1)


def _change_sharpness(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Moves pixels toward or away from a mean over 3 x 3 of them that counts the middle five times; the frame's border
    stays."""
    height, width = clips.shape[-2:]
    if height < 3 or width < 3:
        return clips
    inner = clips[..., 1:-1, 1:-1]
    rows = clips[..., :-2, :].add(clips[..., 1:-1, :]).add_(clips[..., 2:, :])
    blurred = rows[..., :-2].add(rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4).mul_(1 / 13)
    _blend(inner, blurred, factors)
    return clips.clamp_(0, 1)


def _solarize(clips: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    return torch.where(clips >= thresholds, 1 - clips, clips)


def _posterize(clips: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    posterized: torch.Tensor = clips.mul_(levels).floor_().clamp_(max=levels - 1).div_(levels)
    return posterized


def _stretch_contrast(clips: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Stretches each channel of a clip so that its darkest pixel is 0 and its brightest 1; a channel of one brightness
    stays."""
    darkest, brightest = clips.amin(dim=CLIP, keepdim=True), clips.amax(dim=CLIP, keepdim=True)
    flat = darkest == brightest
    span = (brightest - darkest).masked_fill_(flat, 1)
    return clips.sub_(darkest.masked_fill_(flat, 0)).div_(span)


def _equalize(clips: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Flattens each channel's histogram of 256 levels by Pillow's integer arithmetic; a channel that has too few pixels beside
    its brightest level is only rounded to its 256 levels."""
    channels_NCTHW = clips.mul_(255.999).transpose(1, 2).to(torch.int64, memory_format=torch.contiguous_format)
    levels = channels_NCTHW.flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=clips.device)
    counts.scatter_add_(2, levels, counts.new_ones(1).expand_as(levels))
    below = counts.cumsum(dim=2).sub_(counts)  # pixels of darker levels
    # all pixels but those of the brightest level: the remainder turns "all" above it into 0
    step = below.remainder(levels.shape[2]).amax(dim=2, keepdim=True).div_(255, rounding_mode="floor")
    equal = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    shown = torch.where(step > 0, equal, torch.arange(256, device=clips.device)) * (1 / 255)
    return shown.gather(2, levels).view_as(channels_NCTHW).transpose(1, 2)


GEOMETRIC: dict[str, Callable[[float], Matrix]] = {
    "rotate": _rotate, "shear_x": _shear_x, "shear_y": _shear_y, "translate_x": _translate_x, "translate_y": _translate_y,
}  # fmt: skip
"""For each operation a function from a strength in -1..1 to a [3, 3] map. Full strength is that of torchvision's RandAugment
(30 degrees, 0.3, 45 %)."""
APPEARANCE: dict[str, Appearance] = {
    "brightness": Appearance(_compute_factor, _change_brightness),
    "color": Appearance(_compute_factor, _change_color),
    "sharpness": Appearance(_compute_factor, _change_sharpness),
    "solarize": Appearance(lambda share: 1 - abs(share), _solarize),
    "posterize": Appearance(lambda share: 2.0 ** (8 - round(4 * abs(share))), _posterize),
    "contrast": Appearance(_compute_factor, _change_contrast),
    "autocontrast": Appearance(abs, _stretch_contrast),
    "equalize": Appearance(abs, _equalize),
}
"""The operations on pixels, by name."""
IDENTITY = "identity"
OPERATIONS = (IDENTITY, *APPEARANCE, *GEOMETRIC)
"""The names of all operations; ``views.strong.without`` takes some out."""
