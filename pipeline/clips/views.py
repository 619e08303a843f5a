"""Makes random views of decoded clips: the same parameters for all frames, drawn from a seed that belongs to the view alone.

This has two halves. ``draw_weak`` and ``draw_strong`` draw everything random on the host, without looking at a pixel.
``apply_views`` computes from that the views of many clips on their device: one affine map for each clip, then RandAugment's
operations, each for all clips that drew it. On a GPU the number of operator calls does not grow with the number of clips, and
nothing waits for the device; the CPU computes as many clips together as its cache holds. A view's bytes depend on its clip and
its seed only: not on the batch it is in, the worker, or what came before. Coordinates run from -1 to 1 over a window, as in
``torch.nn.functional.grid_sample``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.randaugment import APPEARANCE, GEOMETRIC, IDENTITY, OPERATIONS, Matrix
from pipeline.clips.upload import Arrays, Tensors, upload_arrays
from pipeline.config import StrongSection, TimeSection, ViewsSection, WeakSection
from pipeline.errors import UserError
from pipeline.seeds import Ints, hash_to_uint64

CONTIGUOUS = torch.contiguous_format
CACHE_BYTES = 4 << 20
"""How many bytes of float32 pixels stay in a CPU's cache from one operation to the next."""
Operation = tuple[str, float]
"""An operation's name and its strength."""


@dataclass(frozen=True)
class ViewParameters:
    """Everything that was drawn for the views of N clips."""

    arrays: Arrays
    """What the device needs: ``maps`` [N, 2, 3] float32 from view to window; ``centers`` [size] float32 of the view's pixels;
    if time is changed ``frames`` [N, T] int64, which frame is shown when; if a square is erased ``erased`` [N, 2, 2] float32,
    where its rows and columns begin and end; and of all ``groups``, one after the other, ``clips`` int64 and ``values``
    float32.
    """
    groups: Sequence[tuple[str, int]] = ()
    """The operations on pixels in the order in which they are applied, each with the number of clips that drew it."""
    appearance: bool = False
    """Whether operations on pixels could be drawn, by any clip of any batch."""


def derive_view_seeds(seed: int, rows: npt.ArrayLike, slots: npt.ArrayLike, view: str) -> list[int]:
    """Derives seeds of 64 bits for this view of all slots of all rows, row by row: hashes of (seed, row, slot, view)."""
    return [int(number) for number in hash_to_uint64(seed, np.asarray(rows)[:, None], np.asarray(slots)[None], view).ravel()]


def draw_weak(seeds: Sequence[int], section: ViewsSection, frames: int, size: int) -> ViewParameters:
    """Draws scale jitter, crop and flip for clips of ``frames`` frames, one clip a seed; ``size`` is the views' side in
    pixels."""
    maps = [_draw_crop(_make_generator(seed), section.weak) for seed in seeds]
    return ViewParameters({**_make_geometry_arrays(maps, size), **_draw_frames(seeds, section.weak.time, frames)})


def draw_strong(seeds: Sequence[int], section: ViewsSection, frames: int, size: int) -> ViewParameters:
    """Draws weak geometry anew, RandAugment's operations (Cubuk et al., 2020) and cutout; arguments as for ``draw_weak``.

    RandAugment's geometric operations are folded into the crop, so that pixels are sampled once.
    """
    generators = [_make_generator(seed) for seed in seeds]
    crops = [_draw_crop(generator, section.weak) for generator in generators]
    operations = [_draw_operations(generator, section.strong) for generator in generators]
    arrays = _make_geometry_arrays([_fold_geometry(*drawn) for drawn in zip(crops, operations, strict=True)], size)
    arrays |= _draw_frames(seeds, section.strong.time, frames)
    if section.strong.cutout > 0:
        arrays["erased"] = _float32([_draw_square(generator, section.strong.cutout, size) for generator in generators])
    groups = _group_operations(operations)
    if groups:
        arrays["clips"] = np.array([clip for _, members in groups for clip, _ in members], dtype=np.int64)
        arrays["values"] = _float32([value for _, members in groups for _, value in members])
    appearance = section.strong.ops > 0 and section.strong.appearance
    return ViewParameters(arrays, [(name, len(members)) for name, members in groups], appearance)


def center_pixels(clips_NTHWC: torch.Tensor) -> torch.Tensor:
    """Converts uint8 clips to float32 [N, T, C, H, W], 0..1 less MEAN, from which all views of these clips are made."""
    pixels = clips_NTHWC.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=CONTIGUOUS)
    return pixels.mul_(1 / 255).sub_(MEAN)


def split_clips(count: int, values: int, device: torch.device) -> list[slice]:
    """Splits ``count`` clips, of T * H * W * C ``values`` each, into parts whose views are computed together: on the CPU as
    many as stay in its cache, elsewhere all. Views do not depend on it.

    With 8 clips of 256 pixels at once the CPU took up to twice as long, because every operation waited for memory.
    """
    at_once = max(1, CACHE_BYTES // (4 * values)) if device.type == "cpu" else max(1, count)
    return [slice(start, start + at_once) for start in range(0, count, at_once)]


def allocate_views(count: int, frames: int, size: int, device: torch.device, layout: torch.memory_format) -> torch.Tensor:
    """Allocates float32 [N, C, T, size, size] in this memory ``layout``."""
    return torch.empty(count, 3, frames, size, size, device=device, memory_format=layout)


def apply_views(pixels_NTCHW: torch.Tensor, parameters: ViewParameters, tensors: Tensors, views_NCTHW: torch.Tensor) -> None:
    """Computes normalized views of ``center_pixels`` into ``views_NCTHW``, float32 [N, C, T, size, size].

    ``tensors`` are the parameters' ``arrays`` on the pixels' device. The pixels are left as they are.
    """
    if "frames" in tensors:
        clips = torch.arange(len(pixels_NTCHW), device=pixels_NTCHW.device)[:, None]
        pixels_NTCHW = pixels_NTCHW[clips, tensors["frames"]]
    samples_NTCHW = _sample(pixels_NTCHW, tensors["maps"], tensors["centers"])
    if parameters.appearance:
        _change_appearance(samples_NTCHW, parameters, tensors)
    # divided in place, then moved once: in one pass it took three times as long
    views_NCTHW.copy_(samples_NTCHW.div_(_compute_divisors(len(samples_NTCHW), tensors)).transpose(1, 2))


def make_weak_views(
    clips_NTHWC: torch.Tensor, seeds: Sequence[int], section: ViewsSection, size: int, layout: torch.memory_format = CONTIGUOUS
) -> torch.Tensor:
    """Draws and computes weak views of uint8 clips: normalized float32 [N, C, T, size, size]."""
    return _make_views(clips_NTHWC, lambda part: draw_weak(seeds[part], section, clips_NTHWC.shape[1], size), size, layout)


def make_strong_views(
    clips_NTHWC: torch.Tensor, seeds: Sequence[int], section: ViewsSection, size: int, layout: torch.memory_format = CONTIGUOUS
) -> torch.Tensor:
    """Draws and computes strong views of uint8 clips: normalized float32 [N, C, T, size, size]."""
    return _make_views(clips_NTHWC, lambda part: draw_strong(seeds[part], section, clips_NTHWC.shape[1], size), size, layout)


def make_center_views(clips_NTHWC: torch.Tensor, size: int, layout: torch.memory_format = CONTIGUOUS) -> torch.Tensor:
    """Resizes the center square of uint8 clips to ``size``, for evaluation: normalized float32 [N, C, T, size, size]."""
    height, width = clips_NTHWC.shape[2:4]
    side = min(height, width)
    centers = [np.array([[side / width, 0, 0], [0, side / height, 0]])] * len(clips_NTHWC)
    return _make_views(clips_NTHWC, lambda part: ViewParameters(_make_geometry_arrays(centers[part], size)), size, layout)


def _make_views(
    clips_NTHWC: torch.Tensor, draw: Callable[[slice], ViewParameters], size: int, layout: torch.memory_format
) -> torch.Tensor:
    count, frames, device = len(clips_NTHWC), clips_NTHWC.shape[1], clips_NTHWC.device
    views_NCTHW = allocate_views(count, frames, size, device, layout)
    parts = split_clips(count, clips_NTHWC[:1].numel(), device)
    drawn = [draw(part) for part in parts]
    for part, parameters, tensors in zip(parts, drawn, upload_arrays([each.arrays for each in drawn], device), strict=True):
        apply_views(center_pixels(clips_NTHWC[part]), parameters, tensors, views_NCTHW[part])
    return views_NCTHW


def _float32(values: object) -> npt.NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


def _make_geometry_arrays(maps: Sequence[Matrix], size: int) -> Arrays:
    return {"maps": _float32(maps), "centers": (np.arange(size, dtype=np.float32) * 2 + 1) / np.float32(size) - 1}


def _make_generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _draw_crop(generator: np.random.Generator, section: WeakSection) -> Matrix:
    """Draws a [2, 3] map from view to window: a square of random side and position, mirrored or not."""
    scale = generator.uniform(section.min_scale, 1)
    x, y = generator.uniform(-1, 1, 2) * (1 - scale)
    mirror = -1 if generator.random() < section.flip else 1
    width = height = scale
    if section.max_aspect > 1:  # the longer side stays: a random resized crop within the window
        aspect = np.exp(generator.uniform(-1, 1) * np.log(section.max_aspect))
        width, height = scale * min(1, aspect), scale * min(1, 1 / aspect)
    return np.array([[mirror * width, 0, x], [0, height, y]])


def _draw_frames(seeds: Sequence[int], section: TimeSection, frames: int) -> Arrays:
    """Draws ``frames`` by ``draw_frame_order``; returns no array if time is left as it is."""
    if section == TimeSection():
        return {}
    # a generator of its own: switching time on leaves all else of a view as it was
    generators = [_make_generator(int(hash_to_uint64(seed, "time"))) for seed in seeds]
    return {"frames": np.stack([draw_frame_order(generator, section, frames) for generator in generators])}


def draw_frame_order(generator: np.random.Generator, section: TimeSection, frames: int) -> Ints:
    """Draws [T], which frame is shown when: slowed down around the middle, then warped, then reversed."""
    speed = generator.uniform(section.slowest, 1)
    kept = generator.choice(section.warp) if section.warp else frames
    indices = np.sort(generator.permutation(frames)[:kept])
    backward = generator.random() < section.reverse
    middle = (frames - 1) / 2
    order = np.rint(middle + (np.arange(frames) - middle) * speed).astype(np.int64)
    order = order[indices[np.abs(np.arange(frames)[:, None] - indices).argmin(axis=1)]]
    shown: Ints = order[::-1].copy() if backward else order
    return shown


def check_views(section: ViewsSection) -> None:
    """Raises UserError if ``views.strong`` names operations that do not exist, or leaves none."""
    unknown = [name for name in section.strong.without if name not in OPERATIONS]
    if unknown:
        raise UserError(f"views.strong.without: there is no {', '.join(unknown)}, only {', '.join(OPERATIONS)}")
    if section.strong.ops and not _list_operations(section.strong):
        raise UserError("views.strong: no operation is left to draw from; set views.strong.ops=0 for none")


def _list_operations(section: StrongSection) -> list[str]:
    names = [*((IDENTITY, *APPEARANCE) if section.appearance else ()), *(GEOMETRIC if section.geometric else ())]
    return [name for name in names if name not in section.without]


def _draw_operations(generator: np.random.Generator, section: StrongSection) -> list[Operation]:
    names = _list_operations(section)
    chosen = generator.integers(max(1, len(names)), size=section.ops)
    strengths = generator.uniform(-section.magnitude, section.magnitude, section.ops)
    return [(names[index], float(strength)) for index, strength in zip(chosen, strengths, strict=True)]


def _fold_geometry(crop: Matrix, operations: Sequence[Operation]) -> Matrix:
    for name, strength in operations:
        if name in GEOMETRIC:
            crop = crop @ GEOMETRIC[name](strength)
    return crop


def _group_operations(operations: Sequence[Sequence[Operation]]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Groups operations on pixels, each with its clips and values: all clips' first operations, then their second, and so
    on."""
    groups: list[tuple[str, list[tuple[int, float]]]] = []
    for turn in zip(*operations, strict=True):
        for name, operation in APPEARANCE.items():
            members = [(clip, operation.value(strength)) for clip, (drawn, strength) in enumerate(turn) if drawn == name]
            if members:
                groups.append((name, members))
    return groups


def _draw_square(generator: np.random.Generator, largest: float, size: int) -> list[list[float]]:
    """Draws where rows and columns of a square begin and end. Its side is 0 to ``largest`` of the view's, it lies around a
    random point (DeVries, 2017), and its edges lie between pixels."""
    half = generator.uniform(0, largest) * size / 2
    y, x = generator.uniform(0, size, 2)
    return [[round(middle + side) / size * 2 - 1 for side in (-half, half)] for middle in (y, x)]


def _sample(pixels_NTCHW: torch.Tensor, maps_N23: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Samples bilinearly into new memory, float32 [N, T, C, size, size]; frames share the grid, as channels of one image."""
    theta = maps_N23[:, :, :, None, None]
    # elementwise instead of F.affine_grid's matrix product, whose rounding may depend on the number of clips
    grid = theta[:, :, 0] * centers + theta[:, :, 1] * centers[:, None] + theta[:, :, 2]
    images = pixels_NTCHW.flatten(1, 2)
    samples = F.grid_sample(images, grid.permute(0, 2, 3, 1), mode="bilinear", align_corners=False)
    return torch.unflatten(samples, 1, tuple(pixels_NTCHW.shape[1:3]))


def _change_appearance(views_NTCHW: torch.Tensor, parameters: ViewParameters, tensors: Tensors) -> None:
    """Applies the groups' operations, in place."""
    pixels = views_NTCHW.add_(MEAN).clamp_(0, 1)
    if parameters.groups:
        counts = [count for _, count in parameters.groups]
        values = tensors["values"].view(-1, 1, 1, 1, 1).split(counts)
        for (name, _), clips, value in zip(parameters.groups, tensors["clips"].split(counts), values, strict=True):
            pixels.index_copy_(0, clips, APPEARANCE[name].change(pixels.index_select(0, clips), value))
    pixels.sub_(MEAN)


def _compute_divisors(clips: int, tensors: Tensors) -> torch.Tensor | float:
    """Computes what views are divided by: STD, or [N, 1, 1, size, size] with infinity within erased squares if there are
    any."""
    if "erased" not in tensors:
        return STD
    centers, edges = tensors["centers"], tensors["erased"][..., None]
    inside = (centers > edges[:, :, 0]) & (centers < edges[:, :, 1])
    divisors = torch.full((clips, len(centers), len(centers)), STD, device=centers.device)
    divisors.masked_fill_(inside[:, 0, :, None] & inside[:, 1, None, :], float("inf"))
    return divisors[:, None, None]
