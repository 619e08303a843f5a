"""How others name the tensors of the students' networks, and how they normalized pixels. docs/models.md says what was compared.

The ``list_*_names`` functions yield pairs of prefixes, ours and theirs, for example ``("stem.0", "conv1")``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.clips.normalization import MEAN, STD
from pipeline.students.slow_resnet import Bottleneck, SlowResNet
from pipeline.students.timesformer import TimeSformer

Tensors = dict[str, torch.Tensor]
Names = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Pixels:
    """By which mean and deviation of each color (red, green, blue; values 0..1) a network's pixels are normalized."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    blue_first: bool = False
    """Whether the network takes blue, green, red, as OpenCV reads images."""


PIXELS = {
    "slowfast": Pixels((MEAN,) * 3, (STD,) * 3),
    "slowfast_bgr": Pixels((MEAN,) * 3, (STD,) * 3, blue_first=True),
    "imagenet": Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": Pixels((0.5,) * 3, (0.5,) * 3),
    "torchvision": Pixels((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}
"""How pixels are normalized, by the value of ``network.weights_pixels``. The first is what this project's views have, too."""


@dataclass(frozen=True)
class SlowResNetNames:
    """One project's names of a ResNet's tensors. In ``block`` ``{s1}`` counts stages from 1 and ``{n}`` blocks from 0; in
    ``conv`` and ``norm`` ``{i}`` is 1, 2, 3 and ``{abc}`` a, b, c."""

    project: str
    stem: tuple[str, str]
    """The convolution and the norm behind it."""
    head: str
    block: str
    conv: str
    norm: str
    shortcut: tuple[str, str]
    pixels: str = "slowfast"
    """The key of ``PIXELS`` that is assumed for a file with these names, unless ``network.weights_pixels`` is set."""


SLOW_RESNETS = (
    SlowResNetNames(
        "SlowFast", ("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"), "head.projection", "s{s2}.pathway0_res{n}.",
        "branch2.{abc}", "branch2.{abc}_bn", ("branch1", "branch1_bn"),
    ),
    SlowResNetNames(
        "PyTorchVideo", ("blocks.0.conv", "blocks.0.norm"), "blocks.5.proj", "blocks.{s1}.res_blocks.{n}.",
        "branch2.conv_{abc}", "branch2.norm_{abc}", ("branch1_conv", "branch1_norm"),
    ),
    SlowResNetNames(
        "mmaction2", ("backbone.conv1.conv", "backbone.conv1.bn"), "cls_head.fc_cls", "backbone.layer{s1}.{n}.",
        "conv{i}.conv", "conv{i}.bn", ("downsample.conv", "downsample.bn"), pixels="imagenet",
    ),
    SlowResNetNames(
        "timm or torchvision", ("conv1", "bn1"), "fc", "layer{s1}.{n}.",
        "conv{i}", "bn{i}", ("downsample.0", "downsample.1"),
    ),
)  # fmt: skip


def find_slow_resnet_names(theirs: Mapping[str, torch.Tensor]) -> SlowResNetNames | None:
    """Finds the project that names a ResNet's tensors like this."""
    return next((names for names in SLOW_RESNETS if f"{names.stem[0]}.weight" in theirs), None)


def list_slow_resnet_names(student: nn.Module, theirs: Mapping[str, torch.Tensor]) -> Names:
    """Lists the pairs of names for a ``SlowResNet`` of the student's depth."""
    assert isinstance(student, SlowResNet)
    names = find_slow_resnet_names(theirs) or SLOW_RESNETS[-1]
    yield from zip(("stem.0", "stem.1", "head"), (*names.stem, names.head), strict=True)
    stage, number, width = 0, -1, 0
    for index, block in enumerate(student.blocks):
        inner = next(m for m in block.modules() if isinstance(m, nn.Conv3d)).out_channels
        stage, number = (stage + 1, 0) if inner != width else (stage, number + 1)
        width = inner
        where = names.block.format(s1=stage, s2=stage + 1, n=number)
        for i in range(3 if isinstance(block, Bottleneck) else 2):
            yield f"blocks.{index}.residual.{3 * i}", where + names.conv.format(abc="abc"[i], i=i + 1)
            yield f"blocks.{index}.residual.{3 * i + 1}", where + names.norm.format(abc="abc"[i], i=i + 1)
        for i in range(2):
            yield f"blocks.{index}.shortcut.{i}", where + names.shortcut[i]


def list_timesformer_names(student: nn.Module, theirs: Mapping[str, torch.Tensor]) -> Names:
    """Lists the pairs of names for timm's ViTs or for the TimeSformer of its authors.

    From a ViT, temporal attention is initialized like spatial attention, as in the authors' code.
    """
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


def list_video_resnet_names(student: nn.Module, theirs: Mapping[str, torch.Tensor]) -> Names:
    """Lists the pairs of names for torchvision's video ResNets."""
    for name in {key.rpartition(".")[0] for key in theirs}:
        yield ("head", "fc") if name == "fc" else (f"network.{name}", name)


def map_first_kernels() -> dict[str, str]:
    """Maps the name of each project's first kernel to the tensor that can absorb a constant added to the kernel's output: its
    bias, or the running mean of the norm that follows."""
    first = {f"{names.stem[0]}.weight": f"{names.stem[1]}.running_mean" for names in SLOW_RESNETS}
    return first | {"stem.0.weight": "stem.1.running_mean", "patch_embed.proj.weight": "patch_embed.proj.bias"}


CAFFE2_NAME = re.compile(
    r"(?:(?P<conv1>conv1)|(?P<norm1>res_conv1)|(?P<pred>pred)|res(?P<stage>[2-5])_(?P<number>\d+)_branch(?P<branch>1|2[abc]))"
    r"(?P<bn>_bn)?_(?P<what>w|b|s|rm|riv)"
)
CAFFE2_ENDS = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
"""The names of tensors, by the last part of a blob's name."""


def rename_caffe2_blobs(blobs: Tensors) -> Tensors:
    """Renames the blobs of SlowFast's model zoo (Caffe2) as SlowFast's own code names them. The optimizer's are left out, and
    files that hold no such blobs stay as they are."""
    if "conv1_w" not in blobs or "pred_w" not in blobs:
        return blobs
    renamed = {}
    for name, value in blobs.items():
        if name.endswith("_momentum") or name in ("lr", "model_iter"):
            continue
        match = CAFFE2_NAME.fullmatch(name)
        renamed[_rename_caffe2(match) if match else name] = value
    return renamed


def _rename_caffe2(match: re.Match[str]) -> str:
    end = CAFFE2_ENDS[match["what"]]
    if match["conv1"] or match["norm1"]:
        return f"s1.pathway0_stem.{'conv' if match['conv1'] else 'bn'}.{end}"
    if match["pred"]:
        return f"head.projection.{end}"
    branch = "branch1" if match["branch"] == "1" else f"branch2.{match['branch'][1]}"
    return f"s{match['stage']}.pathway0_res{match['number']}.{branch}{match['bn'] or ''}.{end}"


def adapt_to_our_pixels(theirs: Mapping[str, torch.Tensor], pixels: Pixels) -> Tensors:
    """Adapts tensors that were trained with ``pixels`` to input normalized by MEAN and STD, red first.

    The first kernel, [O, 3, (T,) H, W], is scaled by color, and its input channels are reversed if it took blue first. What the
    means change is added to its bias or to the running mean of the norm behind it. This is exact, except where a kernel meets
    padding. Networks whose first kernel has another name stay as they are.
    """
    scale_C, shift_C = STD / torch.tensor(pixels.std), (MEAN - torch.tensor(pixels.mean)) / torch.tensor(pixels.std)
    tensors = dict(theirs)
    for name, constant in map_first_kernels().items():
        if name in tensors and constant in tensors:
            kernel = tensors[name].flip(1) if pixels.blue_first else tensors[name]
            change = kernel.flatten(2).sum(dim=2) @ shift_C
            tensors[name] = kernel * scale_C.view(-1, *[1] * (kernel.ndim - 2))
            tensors[constant] = tensors[constant] + (change if constant.endswith("bias") else -change)
    return tensors
