"""Loads published weights into the students: renames keys, inflates kernels and interpolates embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.model_folder.read_folder import read_model_folder
from pipeline.students.plain_conv3d import PlainConv3d
from pipeline.students.public_names import (
    PIXELS,
    Names,
    Pixels,
    Tensors,
    adapt_to_our_pixels,
    find_slow_resnet_names,
    list_slow_resnet_names,
    list_timesformer_names,
    list_video_resnet_names,
    map_first_kernels,
    rename_caffe2_blobs,
)
from pipeline.students.slow_resnet import SlowResNet
from pipeline.students.timesformer import TimeSformer, resize_position, resize_time
from pipeline.students.video_resnet import VideoResNet
from pipeline.students.weight_files import read_weight_file

Network = SlowResNet | TimeSformer | VideoResNet | PlainConv3d


@dataclass(frozen=True)
class LoadedWeights:
    """What was taken of the weights, beside all tensors before the head."""

    head: bool
    """Whether the head was taken: its number of classes is the student's."""
    their_classes: int | None
    """The number of classes of their head; None if they have none."""


def load_weights(student: Network, where: str, field: str, pixels: str | None = None) -> LoadedWeights:
    """Replaces the student's weights by those at ``where`` (see ``SlowResNetSection.weights``); the head only if it fits.

    ``field`` is the configuration key, for messages, and ``pixels`` is ``network.weights_pixels``. Raises UserError for weights
    that cannot be downloaded or read, or do not fit.
    """
    try:
        theirs = _select_student(_read(where, student, pixels), student)
        found = _translate(theirs, student)
        return _load(student, found)
    except UserError as error:
        raise UserError(f"{field}={where}: {error}") from None


def _load(student: nn.Module, found: Tensors) -> LoadedWeights:
    own = student.state_dict()
    head = {name: found.pop(name, None) for name in ("head.weight", "head.bias")}
    takes_head = all(value is not None and value.shape == own[name].shape for name, value in head.items())
    if takes_head:
        found |= {name: value for name, value in head.items() if value is not None}
    wanted = [name for name in own if not name.startswith(("head.", "projection.")) and "num_batches_tracked" not in name]
    missing = [name for name in wanted if name not in found]
    if missing:
        count = f"{len(missing)} of {len(wanted)}"
        raise UserError(f"{count} tensors are missing, the first: {missing[0]}; is this the same network?")
    kinds = [
        name for name, value in found.items() if name in own and own[name].is_floating_point() and not value.is_floating_point()
    ]
    if kinds:
        what = f"{len(kinds)} tensors are not floating-point numbers, the first: {kinds[0]} is {found[kinds[0]].dtype}"
        raise UserError(f"{what}; is the file quantized? take the one that it was made of")
    unlike = [name for name in found if name in own and found[name].shape != own[name].shape]
    if unlike:
        shapes = f"{unlike[0]} is {list(found[unlike[0]].shape)}, the student's is {list(own[unlike[0]].shape)}"
        raise UserError(f"{len(unlike)} tensors have another shape, the first: {shapes}; compare width and depth")
    foreign = [name for name in found if name not in own]
    if foreign:
        raise UserError(f"{len(foreign)} tensors have no place in the student, the first: {foreign[0]}; compare depth and norm")
    if broken := [name for name, value in found.items() if not value.isfinite().all()]:
        raise UserError(
            f"{len(broken)} tensors hold NaN or infinity, the first: {broken[0]}; its training diverged: take another"
        )
    student.load_state_dict({**own, **found})
    bias = head["head.bias"]
    return LoadedWeights(takes_head, None if bias is None else len(bias))


def _read(where: str, student: nn.Module, pixels: str | None) -> Tensors:
    kind, _, name = where.partition(":")
    if pixels and (kind in ("timm", "torchvision") or Path(where).expanduser().is_dir()):
        raise UserError(f"weights_pixels={pixels} is for files alone: of these weights it is known which pixels they take")
    if isinstance(student, PlainConv3d) and kind in ("timm", "torchvision"):
        raise UserError("nobody has published weights of arch=plain_conv3d; give a file of this project, or leave weights out")
    try:
        if kind == "timm":
            import timm  # takes 5 s

            network: Any = timm.create_model(name, pretrained=True)
            return adapt_to_our_pixels(network.state_dict(), Pixels(*(network.pretrained_cfg[key] for key in ("mean", "std"))))
        if kind == "torchvision":
            from torchvision.models import get_model, get_model_weights

            arch = str(getattr(student, "arch", "r3d_18"))
            views = get_model_weights(arch)[name].transforms()
            return adapt_to_our_pixels(get_model(arch, weights=name).state_dict(), Pixels(views.mean, views.std))
    except Exception as error:  # unknown names, no network, no disk: many types, all the user's or the network's
        if isinstance(error, OSError) and error.filename and error.strerror:  # the folder of downloads
            variable = "HF_HOME" if kind == "timm" else "TORCH_HOME"
            raise UserError(
                f"cannot be saved: {error.filename}: {error.strerror}; name a folder that can be written with {variable}, or "
                "download the weights and give the file"
            ) from None
        text = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"cannot be had: {text[0]}; download the weights and give the file") from None
    path = Path(where).expanduser()
    if path.is_dir():
        return read_weight_file(read_model_folder(path).weights)
    theirs = _strip_wrappers(rename_caffe2_blobs(read_weight_file(path)))
    names = find_slow_resnet_names(theirs) if isinstance(student, SlowResNet) else None
    known = pixels or (names.pixels if names else "slowfast")
    if known == "slowfast":  # the views'
        return theirs
    if not any(name in theirs for name in map_first_kernels()):
        raise UserError(f"weights_pixels={pixels} is for files with another project's keys: leave it out")
    return adapt_to_our_pixels(theirs, PIXELS[known])


def _strip_wrappers(theirs: Tensors) -> Tensors:
    """Removes ``module.`` (of DistributedDataParallel) and ``model.`` if all names begin with it."""
    for prefix in ("module.", "model."):
        if theirs and all(name.startswith(prefix) for name in theirs):
            theirs = {name.removeprefix(prefix): value for name, value in theirs.items()}
    return theirs


def _select_student(theirs: Tensors, student: nn.Module) -> Tensors:
    """Takes of a checkpoint of this project the student whose shapes fit; leaves other tensors as they are."""
    own = {name: value.shape for name, value in student.state_dict().items() if not name.startswith(("head.", "projection."))}
    for prefix in ("students.primary.", "students.auxiliary."):
        if all(theirs.get(prefix + name, torch.empty(0)).shape == shape for name, shape in own.items()):
            parts = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
            return {name: value for name, value in parts.items() if not name.startswith("projection.")}
    return theirs


def _translate(theirs: Tensors, student: Network) -> Tensors:
    """Translates the tensors' names to this project's, inflates kernels and interpolates embeddings; unknown names stay as
    they are."""
    own = student.state_dict()
    if set(theirs) >= {name for name in own if not name.startswith(("head.", "projection."))}:
        return dict(theirs)
    names = list(TRANSLATIONS[type(student)](student, theirs))
    found = _list_time_weights(own, theirs)
    for ours, other in names:
        for suffix in ("", ".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked"):
            if other + suffix in theirs:
                found[ours + suffix] = _fit_shape(ours, theirs[other + suffix], own.get(ours + suffix))
    used = {other + suffix for _, other in names for suffix in ("", *(f".{key.rpartition('.')[2]}" for key in theirs))}
    return {**found, **{name: value for name, value in theirs.items() if name not in used}}


def _list_time_weights(own: Tensors, theirs: Tensors) -> Tensors:
    """Returns what images cannot teach a TimeSformer: its time embedding, and the layers that let time in."""
    if "blocks.0.temporal_attn.qkv.weight" in theirs or "time_embed" in theirs:
        return {}
    return {name: value for name, value in own.items() if name == "time_embedding" or ".temporal_fc." in name}


def _fit_shape(name: str, value: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    """Inflates kernels [O, I, H, W] to [O, I, T, H, W], whose sum over T is the image's (Carreira & Zisserman, 2017), and
    interpolates embeddings."""
    if own is None or value.shape == own.shape or not value.is_floating_point():
        return value
    if [side for side in value.shape if side != 1] == [side for side in own.shape if side != 1]:  # Caffe2's blobs
        return value.reshape(own.shape)
    if value.ndim == 4 and own.ndim == 5:
        return value[:, :, None].expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]
    if name == "position_embedding" and value.ndim == 3 and math.isqrt(value.shape[1] - 1) ** 2 == value.shape[1] - 1:
        side = math.isqrt(own.shape[1] - 1)
        return resize_position(value, side, side)
    if name == "time_embedding" and value.ndim == 3:
        return resize_time(value, own.shape[1])
    return value


TRANSLATIONS: dict[type, Callable[[nn.Module, Tensors], Names]] = {
    SlowResNet: list_slow_resnet_names, TimeSformer: list_timesformer_names, VideoResNet: list_video_resnet_names,
    PlainConv3d: lambda student, theirs: iter(()),
}  # fmt: skip
