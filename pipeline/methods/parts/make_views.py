"""Makes the views of a step: random parameters are drawn on the host and copied in one go; the device does the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.modalities import derive_modality
from pipeline.clips.upload import Arrays, Tensors, upload_arrays
from pipeline.clips.views import (
    ViewParameters,
    allocate_views,
    apply_views,
    center_pixels,
    derive_view_seeds,
    draw_strong,
    draw_weak,
    split_clips,
)
from pipeline.config import STUDENTS, ClipSection, Config, ViewsSection
from pipeline.methods.parts.inputs import UnlabeledViews, Views
from pipeline.seeds import Floats, Ints, hash_to_uint64

Kind = Literal["labeled", "weak", "strong"]
TensorsOfViews = dict[tuple[Kind, str], list[Tensors]]
"""The arrays of ``DrawnViews.views`` on the device."""
DRAW: dict[Kind, Callable[[Sequence[int], ViewsSection, int, int], ViewParameters]] = {
    "labeled": draw_weak, "weak": draw_weak, "strong": draw_strong,
}  # fmt: skip


@dataclass(frozen=True)
class DrawnViews:
    """The random parameters of a batch's views, and the labels and rows of its videos, on the host."""

    views: dict[tuple[Kind, str], list[ViewParameters]]
    """Parameters by kind and student, for the kinds that are wanted, in the parts that ``split_clips`` makes."""
    numbers: Arrays
    """``labels`` [B]; ``hidden_labels`` and ``videos`` [U] of unlabeled videos; ``mixed_shares`` [B] with mixup."""

    @property
    def arrays(self) -> list[Arrays]:
        """All arrays that the device needs."""
        return [self.numbers, *(parameters.arrays for parts in self.views.values() for parameters in parts)]


def make_views(
    batch: Batch, config: Config, seed: int, device: torch.device | str, unlabeled: bool = True, strong: bool = True
) -> Views:
    """Makes the views of a batch on ``device``: of slot 0 labeled ones, of the other slots weak and strong ones.

    Pass the step's ``LossWeights.has_unlabeled`` and ``has_strong`` as ``unlabeled`` and ``strong``, because views that no
    loss uses cost time. The seed of each view is a hash of (seed, run row, slot, "student/kind"), so the students' views are
    independent, and any view of any run can be made again.
    """
    return next(make_views_of_parts([batch], config, seed, torch.device(device), unlabeled, strong))


def make_views_of_parts(
    parts: Sequence[Batch], config: Config, seed: int, device: torch.device, unlabeled: bool, strong: bool
) -> Iterator[Views]:
    """Yields ``make_views`` of every part of a step, each when it is asked for.

    All parts together need one small copy to the device, apart from the clips that are not there yet.
    """
    kinds: list[Kind] = ["labeled"]
    if unlabeled:
        kinds += ["weak", "strong"] if strong else ["weak"]
    draws = [_draw_views(part, config, seed, kinds, device) for part in parts]
    tensors = iter(upload_arrays([arrays for draw in draws for arrays in draw.arrays], device))
    for part, draw in zip(parts, draws, strict=True):
        numbers = next(tensors)
        of_views: TensorsOfViews = {key: [next(tensors) for _ in parameters] for key, parameters in draw.views.items()}
        yield _apply_draws(part, config, draw, numbers, of_views, device)


def _draw_views(batch: Batch, config: Config, seed: int, kinds: Sequence[Kind], device: torch.device) -> DrawnViews:
    rows, slots = batch.rows.numpy(), batch.labels.shape[1]
    numbers: Arrays = {"labels": batch.labels[:, 0].numpy()}
    if slots > 1 and "weak" in kinds:
        numbers["hidden_labels"] = batch.labels[:, 1:].numpy().ravel()
        numbers["videos"] = batch.videos[:, 1:].numpy().ravel()
    if config.method.supervised.mixup:
        numbers["mixed_shares"] = draw_mixup_shares(seed, rows, config.method.supervised.mixup).astype(np.float32)
    views = {}
    for kind in kinds if slots > 1 else kinds[:1]:
        for student in STUDENTS:
            clip: ClipSection = getattr(config, student).clip
            seeds = derive_view_seeds(seed, rows, [0] if kind == "labeled" else list(range(1, slots)), f"{student}/{kind}")
            parts = split_clips(len(seeds), getattr(batch, student)[:1, 0].numel(), device)
            views[kind, student] = [DRAW[kind](seeds[part], config.views, clip.frames, clip.size) for part in parts]
    return DrawnViews(views, numbers)


def _apply_draws(
    batch: Batch, config: Config, draw: DrawnViews, numbers: Tensors, tensors: TensorsOfViews, device: torch.device
) -> Views:
    views_of_kind: dict[Kind, dict[str, torch.Tensor]] = {}
    # convolutions with weights in this layout would copy clips of another one twice, forward and backward
    layout = torch.channels_last_3d if config.train.channels_last else torch.contiguous_format
    for student in STUDENTS:
        clip: ClipSection = getattr(config, student).clip
        clips_BSTHWC: torch.Tensor = getattr(batch, student).to(device, non_blocking=True)
        for kinds, slots in ((("labeled",), slice(0, 1)), (("weak", "strong"), slice(1, None))):
            wanted: list[Kind] = [kind for kind, name in draw.views if kind in kinds and name == student]
            if not wanted:
                continue
            clips_NTHWC = clips_BSTHWC[:, slots].flatten(0, 1)
            count = len(clips_NTHWC)
            views = {kind: allocate_views(count, clip.frames, clip.size, device, layout) for kind in wanted}
            for number, part in enumerate(split_clips(count, clips_NTHWC[:1].numel(), device)):
                pixels_NTCHW = center_pixels(clips_NTHWC[part])
                for kind in wanted:
                    drawn, tensors_of_part = draw.views[kind, student][number], tensors[kind, student][number]
                    apply_views(pixels_NTCHW, drawn, tensors_of_part, views[kind][part])
            for kind in wanted:
                views_of_kind.setdefault(kind, {})[student] = derive_modality(views[kind], clip.modality)
    shares = numbers.get("mixed_shares")
    labeled = views_of_kind["labeled"]
    if shares is not None:
        labeled = {name: mix_clips(labeled[name], shares) for name in STUDENTS}
    unlabeled = None
    if "weak" in views_of_kind:
        weak, strong = views_of_kind["weak"], views_of_kind.get("strong", {})
        unlabeled = UnlabeledViews(weak, strong, numbers["hidden_labels"], numbers["videos"])
    return Views(labeled, numbers["labels"], unlabeled, shares)


def draw_mixup_shares(seed: int, rows_B: Ints, alpha: float) -> Floats:
    """Draws [B] shares from Beta(alpha, alpha), each by (seed, row)."""
    seeds = [int(number) for number in hash_to_uint64(seed, rows_B, "mixup")]
    return np.array([np.random.Generator(np.random.Philox(key=number)).beta(alpha, alpha) for number in seeds])


def mix_clips(clips_NCTHW: torch.Tensor, shares_N: torch.Tensor) -> torch.Tensor:
    """Mixes each clip by its share with the one before it in the batch, and the first clip with the last one."""
    return clips_NCTHW.roll(1, dims=0).lerp(clips_NCTHW, shares_N[:, None, None, None, None])
