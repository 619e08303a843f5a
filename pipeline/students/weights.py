"""Loads published weights into the students: renames keys, inflates kernels and interpolates embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model, get_model_weights

from pipeline.clips.normalization import MEAN, STD
from pipeline.errors import UserError
from pipeline.model_folder.read_folder import read_model_folder
from pipeline.students.plain_conv3d import PlainConv3d
from pipeline.students.slow_resnet import Bottleneck, SlowResNet
from pipeline.students.timesformer import TimeSformer, resize_position, resize_time
from pipeline.students.video_resnet import VideoResNet

Tensors = dict[str, torch.Tensor]
Names = Iterator[tuple[str, str]]
"""(this project's prefix, the other's)."""


def load_weights(student: SlowResNet | TimeSformer | VideoResNet | PlainConv3d, where: str, field: str) -> None:
    """Replaces the student's weights by those at ``where`` (see ``SlowResNetSection.weights``); the head only if it fits.

    ``field`` is the configuration key, for messages. Raises UserError for weights that cannot be downloaded or read, or do not
    fit.
    """
    try:
        theirs = _strip_prefixes(_read(where, student), student)
        found = _translate(theirs, student)
        _load(student, found, theirs)
    except UserError as error:
        raise UserError(f"{field}={where}: {error}") from None


def _load(student: nn.Module, found: Tensors, theirs: Tensors) -> None:
    own = student.state_dict()
    head = {name: found.pop(name, None) for name in ("head.weight", "head.bias")}
    if all(value is not None and value.shape == own[name].shape for name, value in head.items()):
        found |= {name: value for name, value in head.items() if value is not None}
    wanted = [name for name in own if not name.startswith(("head.", "projection.")) and "num_batches_tracked" not in name]
    missing = [name for name in wanted if name not in found]
    if missing:
        count = f"{len(missing)} of {len(wanted)}"
        raise UserError(f"{count} tensors are missing, the first: {missing[0]}; is this the same network?")
    unlike = [name for name in found if name in own and found[name].shape != own[name].shape]
    if unlike:
        shapes = f"{unlike[0]} is {list(found[unlike[0]].shape)}, the student's is {list(own[unlike[0]].shape)}"
        raise UserError(f"{len(unlike)} tensors have another shape, the first: {shapes}; compare width and depth")
    foreign = [name for name in found if name not in own]
    if foreign:
        raise UserError(f"{len(foreign)} tensors have no place in the student, the first: {foreign[0]}; compare depth and norm")
    student.load_state_dict({**own, **found})


def _read(where: str, student: nn.Module) -> Tensors:
    kind, _, name = where.partition(":")
    if isinstance(student, PlainConv3d) and kind in ("timm", "torchvision"):
        raise UserError("nobody has published weights of arch=plain_conv3d; give a file of this project, or leave weights out")
    try:
        if kind == "timm":
            network: Any = timm.create_model(name, pretrained=True)
            return _adapt_to_our_pixels(network.state_dict(), network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        if kind == "torchvision":
            arch = str(getattr(student, "arch", "r3d_18"))
            views = get_model_weights(arch)[name].transforms()
            return _adapt_to_our_pixels(get_model(arch, weights=name).state_dict(), views.mean, views.std)
    except Exception as error:  # unknown names, no network, no disk: many types, all the user's or the network's
        text = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"cannot be had: {text[0]}; download the weights and give the file") from None
    path = Path(where).expanduser()
    return _read_file(read_model_folder(path).weights if path.is_dir() else path)


FIRST = {
    "conv1.weight": "bn1.running_mean",
    "stem.0.weight": "stem.1.running_mean",
    "patch_embed.proj.weight": "patch_embed.proj.bias",
}
"""First kernels of timm's ResNets, torchvision's video networks and timm's ViTs, and what takes up a constant behind them."""


def _adapt_to_our_pixels(theirs: Mapping[str, torch.Tensor], means: Sequence[float], stds: Sequence[float]) -> Tensors:
    """Adapts the network to pixels normalized by MEAN and STD instead of each color's own mean and deviation.

    The first kernel is scaled by color, and what the means change is added to its bias or to the running mean of the norm
    behind it. This is exact, except where a kernel meets padding.
    """
    scale_C, shift_C = STD / torch.tensor(stds), (MEAN - torch.tensor(means)) / torch.tensor(stds)
    tensors = dict(theirs)
    for name, constant in FIRST.items():
        if name in tensors:
            kernel = tensors[name]
            change = kernel.flatten(2).sum(dim=2) @ shift_C
            tensors[name] = kernel * scale_C.view(-1, *[1] * (kernel.ndim - 2))
            tensors[constant] = tensors[constant] + (change if constant.endswith("bias") else -change)
    return tensors


def _read_file(path: Path) -> Tensors:
    if not path.is_file():
        raise UserError("there is no such file")
    try:
        is_safe = path.suffix == ".safetensors"
        tree: Any = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError, EOFError, ModuleNotFoundError) as error:
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}") from None
    except Exception as error:  # pickle's own; what torch refuses to unpickle among them
        raise UserError(f"cannot be read as tensors only: {str(error).splitlines()[0]}") from None
    for name in ("model_state", "state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping) or not all(isinstance(value, torch.Tensor) for value in tree.values()):
        raise UserError("holds no mapping of names to tensors")
    return dict(tree)


def _strip_prefixes(theirs: Tensors, student: nn.Module) -> Tensors:
    """Removes ``module.`` and ``model.``; of a checkpoint of this project, takes the student whose shapes fit."""
    for prefix in ("module.", "model."):
        if theirs and all(name.startswith(prefix) for name in theirs):
            theirs = {name.removeprefix(prefix): value for name, value in theirs.items()}
    own = {name: value.shape for name, value in student.state_dict().items() if not name.startswith(("head.", "projection."))}
    for prefix in ("students.primary.", "students.auxiliary."):
        if all(theirs.get(prefix + name, torch.empty(0)).shape == shape for name, shape in own.items()):
            parts = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
            return {name: value for name, value in parts.items() if not name.startswith("projection.")}
    return theirs


def _translate(theirs: Tensors, student: SlowResNet | TimeSformer | VideoResNet | PlainConv3d) -> Tensors:
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
    if own is None or value.shape == own.shape:
        return value
    if value.ndim == 4 and own.ndim == 5:
        return value[:, :, None].expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]
    if name == "position_embedding" and value.ndim == 3 and math.isqrt(value.shape[1] - 1) ** 2 == value.shape[1] - 1:
        side = math.isqrt(own.shape[1] - 1)
        return resize_position(value, side, side)
    if name == "time_embedding" and value.ndim == 3:
        return resize_time(value, own.shape[1])
    return value


def _translate_slow_resnet_names(student: nn.Module, theirs: Tensors) -> Names:
    """Maps keys of timm's (and torchvision's) ResNets, of SlowFast's SlowOnly, or of PyTorchVideo's ``slow_r50``."""
    assert isinstance(student, SlowResNet)
    if "s1.pathway0_stem.conv.weight" in theirs:
        stem, head, place = ("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"), "head.projection", "s{s2}.pathway0_res{n}."
        conv, norm, shortcut = "branch2.{abc}", "branch2.{abc}_bn", ("branch1", "branch1_bn")
    elif "blocks.0.conv.weight" in theirs:
        stem, head, place = ("blocks.0.conv", "blocks.0.norm"), "blocks.5.proj", "blocks.{s1}.res_blocks.{n}."
        conv, norm, shortcut = "branch2.conv_{abc}", "branch2.norm_{abc}", ("branch1_conv", "branch1_norm")
    else:
        stem, head, place = ("conv1", "bn1"), "fc", "layer{s1}.{n}."
        conv, norm, shortcut = "conv{i}", "bn{i}", ("downsample.0", "downsample.1")
    yield from zip(("stem.0", "stem.1", "head"), (*stem, head), strict=True)
    stage, number, width = 0, -1, 0
    for index, block in enumerate(student.blocks):
        inner = next(m for m in block.modules() if isinstance(m, nn.Conv3d)).out_channels
        stage, number = (stage + 1, 0) if inner != width else (stage, number + 1)
        width = inner
        where = place.format(s1=stage, s2=stage + 1, n=number)
        for i in range(3 if isinstance(block, Bottleneck) else 2):
            yield f"blocks.{index}.residual.{3 * i}", where + conv.format(abc="abc"[i], i=i + 1)
            yield f"blocks.{index}.residual.{3 * i + 1}", where + norm.format(abc="abc"[i], i=i + 1)
        for i in range(2):
            yield f"blocks.{index}.shortcut.{i}", where + shortcut[i]


def _translate_timesformer_names(student: nn.Module, theirs: Tensors) -> Names:
    """Maps keys of timm's ViTs, whose attention then initializes the temporal one, too (the authors' code), or of the
    authors."""
    assert isinstance(student, TimeSformer)
    yield "patches", "patch_embed.proj"
    yield "cls_token", "cls_token"
    yield "position_embedding", "pos_embed"
    if "time_embed" in theirs:
        yield "time_embedding", "time_embed"
    yield "norm", "norm"
    yield "head", "head"
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    is_video = "blocks.0.temporal_attn.qkv.weight" in theirs
    for index in range(len(student.blocks)):
        block = f"blocks.{index}."
        for layer in layers:
            yield block + ("space." if student.attention == "divided" else "") + layer, block + layer
        if student.attention == "divided":
            yield block + "temporal_norm", block + ("temporal_norm1" if is_video else "norm1")
            for part in ("qkv", "proj"):
                yield block + f"temporal_attention.{part}", block + ("temporal_attn." if is_video else "attn.") + part
            yield block + "temporal_fc", block + "temporal_fc"


def _translate_video_resnet_names(student: nn.Module, theirs: Tensors) -> Names:
    """Maps torchvision's keys."""
    for name in {key.rpartition(".")[0] for key in theirs}:
        yield ("head", "fc") if name == "fc" else (f"network.{name}", name)


TRANSLATIONS: dict[type, Callable[[nn.Module, Tensors], Names]] = {
    SlowResNet: _translate_slow_resnet_names, TimeSformer: _translate_timesformer_names,
    VideoResNet: _translate_video_resnet_names,
    PlainConv3d: lambda student, theirs: iter(()),
}  # fmt: skip
