"""Random views of decoded clips: the same parameters for all frames, drawn from a seed that belongs to the view alone.

Geometry is one affine map per clip, applied to the whole batch at once on the clips' device; appearance follows clip by
clip. A view's bytes depend on its clip and its seed only: not on the batch it is in, the worker, or what came before.
Coordinates run from -1 to 1 over a window, as in ``torch.nn.functional.grid_sample``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.operations import APPEARANCE, GEOMETRIC, OPERATIONS, Matrix
from pipeline.clips.seeds import Ints, hash64
from pipeline.config import StrongSection, TimeSection, ViewsSection, WeakSection
from pipeline.errors import UserError

PLAIN = torch.contiguous_format


def view_seeds(seed: int, rows: npt.ArrayLike, slots: npt.ArrayLike, view: str) -> list[int]:
    """Seeds of 64 bits of this view in all slots of all rows, row by row: hashes of (seed, row, slot, view)."""
    return [int(number) for number in hash64(seed, np.asarray(rows)[:, None], np.asarray(slots)[None], view).ravel()]


def weak_views(
    clips_NTHWC: torch.Tensor, seeds: Sequence[int], section: ViewsSection, size: int, layout: torch.memory_format = PLAIN
) -> torch.Tensor:
    """Scale jitter, crop, flip of uint8 clips -> normalized float32 [N, C, T, size, size], in memory as ``layout`` says."""
    maps = [_crop(_generator(seed), section.weak) for seed in seeds]
    return _normalized(_sample(_retime(clips_NTHWC, seeds, section.weak.time), maps, size), layout)


def strong_views(
    clips_NTHWC: torch.Tensor, seeds: Sequence[int], section: ViewsSection, size: int, layout: torch.memory_format = PLAIN
) -> torch.Tensor:
    """Weak geometry drawn anew, RandAugment (Cubuk et al., 2020) and cutout -> normalized float32 [N, C, T, size, size].

    RandAugment's geometric operations are folded into the crop, so that pixels are sampled once.
    """
    generators = [_generator(seed) for seed in seeds]
    crops = [_crop(generator, section.weak) for generator in generators]
    operations = [_draw_operations(generator, section.strong) for generator in generators]
    retimed_NTHWC = _retime(clips_NTHWC, seeds, section.strong.time)
    centered_NTCHW = _sample(retimed_NTHWC, [_fold(*drawn) for drawn in zip(crops, operations, strict=True)], size)
    for number, generator in enumerate(generators):
        _apply_appearance(centered_NTCHW[number], operations[number])
        _cutout(centered_NTCHW[number], generator, section.strong.cutout)
    return _normalized(centered_NTCHW, layout)


def center_views(clips_NTHWC: torch.Tensor, size: int, layout: torch.memory_format = PLAIN) -> torch.Tensor:
    """The center square of uint8 clips resized to ``size`` -> normalized float32 [N, C, T, size, size]; for evaluation."""
    height, width = clips_NTHWC.shape[2:4]
    side = min(height, width)
    center = np.array([[side / width, 0, 0], [0, side / height, 0]])
    return _normalized(_sample(clips_NTHWC, [center] * len(clips_NTHWC), size), layout)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _crop(generator: np.random.Generator, section: WeakSection) -> Matrix:
    """[2, 3] map from view to window: a square of random side and place, mirrored or not."""
    scale = generator.uniform(section.min_scale, 1)
    x, y = generator.uniform(-1, 1, 2) * (1 - scale)
    mirror = -1 if generator.random() < section.flip else 1
    width = height = scale
    if section.max_aspect > 1:  # the longer side stays: a random resized crop within the window
        aspect = np.exp(generator.uniform(-1, 1) * np.log(section.max_aspect))
        width, height = scale * min(1, aspect), scale * min(1, 1 / aspect)
    return np.array([[mirror * width, 0, x], [0, height, y]])


def _retime(clips_NTHWC: torch.Tensor, seeds: Sequence[int], section: TimeSection) -> torch.Tensor:
    """Each clip with frames chosen by ``frame_order``; the clips themselves where nothing is switched on."""
    if section == TimeSection():
        return clips_NTHWC
    # a generator of its own: switching time on leaves all else of a view as it was
    orders = [frame_order(_generator(int(hash64(seed, "time"))), section, clips_NTHWC.shape[1]) for seed in seeds]
    rows = torch.arange(len(seeds), device=clips_NTHWC.device)[:, None]
    return clips_NTHWC[rows, torch.from_numpy(np.stack(orders)).to(clips_NTHWC.device)]


def frame_order(generator: np.random.Generator, section: TimeSection, frames: int) -> Ints:
    """[T] which frame is shown when: slowed down around the middle, warped, reversed, in this order."""
    speed = generator.uniform(section.slowest, 1)
    kept = generator.choice(section.warp) if section.warp else frames
    places = np.sort(generator.permutation(frames)[:kept])
    backward = generator.random() < section.reverse
    middle = (frames - 1) / 2
    order = np.rint(middle + (np.arange(frames) - middle) * speed).astype(np.int64)
    order = order[places[np.abs(np.arange(frames)[:, None] - places).argmin(axis=1)]]
    shown: Ints = order[::-1].copy() if backward else order
    return shown


def _sample(clips_NTHWC: torch.Tensor, maps: Sequence[Matrix], size: int) -> torch.Tensor:
    """Bilinear samples less MEAN, float32 [N, T, C, size, size]; frames share the grid, as channels of one image."""
    frames, channels = clips_NTHWC.shape[1], clips_NTHWC.shape[4]
    images = clips_NTHWC.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=PLAIN).flatten(1, 2)
    theta = torch.from_numpy(np.stack(maps)).to(clips_NTHWC.device, torch.float32)[:, :, :, None, None]
    centers = (torch.arange(size, device=theta.device) * 2 + 1) / size - 1
    # elementwise instead of F.affine_grid's matrix product, whose rounding may depend on the number of clips
    grid = theta[:, :, 0] * centers + theta[:, :, 1] * centers[:, None] + theta[:, :, 2]
    centered = images.mul_(1 / 255).sub_(MEAN)
    samples = F.grid_sample(centered, grid.permute(0, 2, 3, 1), mode="bilinear", align_corners=False)
    return torch.unflatten(samples, 1, (frames, channels))


def _normalized(centered_NTCHW: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """Divided in place, then moved once: dividing and moving in one pass took three times as long."""
    return centered_NTCHW.div_(STD).transpose(1, 2).contiguous(memory_format=layout)


Operation = tuple[str, float]
"""Name and strength."""


def check_views(section: ViewsSection) -> None:
    """Raises UserError for operations that do not exist, and when none is left."""
    unknown = [name for name in section.strong.without if name not in OPERATIONS]
    if unknown:
        raise UserError(f"views.strong.without: there is no {', '.join(unknown)}, only {', '.join(OPERATIONS)}")
    if section.strong.ops and not _names(section.strong):
        raise UserError("views.strong: no operation is left to draw from; set views.strong.ops=0 for none")


def _names(section: StrongSection) -> list[str]:
    names = [*(APPEARANCE if section.appearance else ()), *(GEOMETRIC if section.geometric else ())]
    return [name for name in names if name not in section.without]


def _draw_operations(generator: np.random.Generator, section: StrongSection) -> list[Operation]:
    names = _names(section)
    chosen = generator.integers(max(1, len(names)), size=section.ops)
    strengths = generator.uniform(-section.magnitude, section.magnitude, section.ops)
    return [(names[index], float(strength)) for index, strength in zip(chosen, strengths, strict=True)]


def _fold(crop: Matrix, operations: Sequence[Operation]) -> Matrix:
    for name, strength in operations:
        if name in GEOMETRIC:
            crop = crop @ GEOMETRIC[name](strength)
    return crop


def _apply_appearance(centered_TCHW: torch.Tensor, operations: Sequence[Operation]) -> None:
    """In place, in the order drawn."""
    named = [(APPEARANCE[name], strength) for name, strength in operations if name in APPEARANCE]
    if not named:
        return
    clip = centered_TCHW.add(MEAN).clamp_(0, 1)
    for operation, strength in named:
        clip = operation(clip, strength)
    centered_TCHW.copy_(clip).sub_(MEAN)


def _cutout(centered_TCHW: torch.Tensor, generator: np.random.Generator, largest: float) -> None:
    """Erase, in place, a square of side 0 to ``largest`` shares of the view around a random point (DeVries, 2017)."""
    size = centered_TCHW.shape[-1]
    half = generator.uniform(0, largest) * size / 2
    y, x = generator.uniform(0, size, 2)
    top, bottom, left, right = (max(0, round(edge)) for edge in (y - half, y + half, x - half, x + half))
    centered_TCHW[:, :, top:bottom, left:right] = 0
