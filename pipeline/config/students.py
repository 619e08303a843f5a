"""Knobs: the two students, what they see and how they learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.section import LATER, MID_RUN, PAPER, FrameRate, Frames, Pixels, Section, from_source


class ClipSection(Section):
    """What one student sees of a video: ``frames`` frames of ``size`` pixels square, from a window or from the whole video."""

    sampling: Literal["window", "segments"] = Field("window", json_schema_extra=LATER | PAPER)
    """``window``: consecutive frames at ``fps`` frames a second (the paper's). ``segments`` (TSN, Wang et al., ECCV 2016; also
    TSM and TCL): the whole video is divided into ``frames`` parts of equal duration, and one frame of each part is seen: at a
    random time of the part in training, in its middle in evaluation. A manifest row with ``start`` and ``end`` is the whole
    video here."""
    frames: Frames = Field(8, ge=1, json_schema_extra=from_source("paper, for the primary"))
    """Frames in a clip; of segments also their number. The paper's primary input is 3 x 8 x 224 x 224."""
    fps: FrameRate | None = Field(8.0, gt=0)
    """Frames per second of video time in a window, whatever the file's own rate: primary lower, auxiliary higher. Segments
    have none (null): what sets their rate is ``frames``."""
    size: Pixels = Field(224, ge=8, json_schema_extra=from_source("paper, for the primary"))
    """Side of the square clip that the student sees, in pixels."""
    modality: Literal["rgb", "temporal_gradient", "optical_flow"] = Field("rgb", json_schema_extra=PAPER)
    """What is made of the frames before the student sees them, in training and evaluation: LTG's second student sees
    ``temporal_gradient``, differences of neighboring frames. ``optical_flow`` needs OpenCV (``pip install .[flow]``)."""

    @model_validator(mode="before")
    @classmethod
    def _segments_have_no_rate(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and tree.get("sampling") == "segments":
            return {"fps": None, **tree}
        return tree

    @model_validator(mode="after")
    def _rate_fits_sampling(self) -> ClipSection:
        if self.sampling == "segments" and self.fps is not None:
            raise ValueError(
                "clips of sampling=segments have no fps, their frames are spread over the whole video: leave fps out and "
                "choose frames, or write sampling=window"
            )
        if self.sampling == "window" and self.fps is None:
            raise ValueError("clips of sampling=window need fps, their frames per second")
        return self


WeightsPixels = Literal["slowfast", "slowfast_bgr", "imagenet", "half", "torchvision"]


class SlowResNetSection(Section):
    """Slow pathway ResNet: no temporal stride, temporal kernels only in res4 and res5."""

    arch: Literal["slow_resnet"] = "slow_resnet"
    depth: Literal[10, 14, 18, 26, 34, 50, 101] = Field(50, json_schema_extra=PAPER)
    """Layers. 50 is the paper's; 10, 18 and 34 use basic blocks, the others bottlenecks; 10, 14 and 26 have fewer blocks."""
    width: int = Field(64, ge=4, json_schema_extra=PAPER)
    """Channels of the stem; 64 is ResNet's."""
    temporal_kernel: Literal[1, 3, 5] = Field(3, json_schema_extra=PAPER)
    """Frames under a kernel in res4 and res5: 3 is the paper's, 1 makes a network that looks at single frames."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization. ``group`` (8 channels a group) has no statistics across clips, so results do not depend on workers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier."""
    weights: str | None = Field(None, json_schema_extra=PAPER)
    """Start from these weights, the head excepted if its classes are others: ``timm:NAME`` (an image ResNet by timm, e.g.
    ``timm:resnet50.a1_in1k``, downloaded, inflated in time), a model folder of ``jobs.export``, or a file (.safetensors, .pt,
    .pth, .pyth, .pkl) with the keys of timm, SlowFast (also Caffe2's), PyTorchVideo, mmaction2, or this project. null, random,
    is the paper's."""
    weights_pixels: WeightsPixels | None = Field(None, json_schema_extra=LATER)
    """By which mean and deviation the pixels were normalized on which a file of ``weights`` was trained: ``slowfast`` (0.45 and
    0.225 for all colors, as the views here), ``slowfast_bgr`` (the same with blue first), ``imagenet`` (0.485, 0.456, 0.406 and
    0.229, 0.224, 0.225), ``half`` (0.5 and 0.5), ``torchvision`` (its video networks'). The first kernel is then made to take
    the views' pixels. null: ``imagenet`` for keys of mmaction2, ``slowfast`` for others. Of ``timm:`` and ``torchvision:``
    names and of model folders it is known."""


class TimeSformerSection(Section):
    """TimeSformer on ViT blocks: divided space-time attention by default. ViT-S is the paper's."""

    arch: Literal["timesformer"] = "timesformer"
    width: int = Field(384, ge=8, json_schema_extra=PAPER)
    """Embedding width: 192 (Ti), 384 (S), 768 (B)."""
    depth: int = Field(12, ge=1, json_schema_extra=PAPER)
    """Transformer blocks."""
    heads: int = Field(6, ge=1, json_schema_extra=PAPER)
    """Attention heads."""
    patch: Pixels = Field(16, ge=2, json_schema_extra=PAPER)
    """Side of a patch in pixels; must divide the clip's size."""
    tubelet: Frames = Field(1, ge=1, json_schema_extra=PAPER)
    """Frames in one patch: 1 as in the paper, 2 as in ViViT and VideoMAE; must divide the clip's frames."""
    stem: Literal["patch", "convolutions"] = Field("patch", json_schema_extra=LATER | PAPER)
    """How pixels become tokens: one linear map a patch, as in the paper, or 3x3x3 convolutions that halve the picture until one
    pixel is a patch (Xiao et al., NeurIPS 2021), which small transformers without pretraining need. With ``convolutions``
    ``patch`` is a power of 2, and ``tubelet`` one up to ``patch``: the last convolutions halve time."""
    attention: Literal["divided", "joint", "space"] = Field("divided", json_schema_extra=PAPER)
    """Divided space-time, joint space-time, or space only."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth rate of the last block, rising linearly from 0."""
    weights: str | None = Field(None, json_schema_extra=PAPER)
    """Start from these weights, the head excepted if its classes are others: ``timm:NAME`` (an image ViT by timm, e.g.
    ``timm:deit_small_patch16_224.fb_in1k``, downloaded), a model folder of ``jobs.export``, or a file (.safetensors, .pt, .pth,
    .pyth, .pkl) with the keys of timm, the TimeSformer authors, or this project. Embeddings are interpolated to the clip. null:
    random, the paper's."""
    weights_pixels: WeightsPixels | None = Field(None, json_schema_extra=LATER)
    """By which mean and deviation the pixels were normalized on which a file of ``weights`` was trained, as for a slow_resnet.
    null: ``slowfast``, which is the TimeSformer authors', too; timm's ViTs have ``imagenet`` or ``half``."""


class VideoResNetSection(Section):
    """3-D ResNets of torchvision, for the relatives: LTG's are ``r3d_18``, CMPL's auxiliary is a narrower one."""

    arch: Literal["r3d_18", "r2plus1d_18"] = "r3d_18"
    """3-D kernels (33.2 M parameters), or 2-D in space and 1-D in time (31.3 M)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier."""
    weights: str | None = None
    """Start from these weights, the head excepted if its classes are others: ``torchvision:NAME`` (e.g.
    ``torchvision:KINETICS400_V1``, downloaded), a model folder, or a file with torchvision's or this project's keys. null:
    random."""
    weights_pixels: WeightsPixels | None = Field(None, json_schema_extra=LATER)
    """By which mean and deviation the pixels were normalized on which a file of ``weights`` was trained, as for a slow_resnet:
    ``torchvision`` for torchvision's files. null: ``slowfast``."""


class PlainConv3dSection(Section):
    """Strided 3-D convolutions one after the other, for small videos on small machines: C3D (Tran et al., ICCV 2015) without
    pooling and without fully connected layers. Motion is seen from the first layer on. Choice; not the paper's."""

    arch: Literal["plain_conv3d"] = "plain_conv3d"
    layers: int = Field(4, ge=2)
    """3x3x3 convolutions. Each halves height and width, with twice the one before's channels; all but the first halve time."""
    width: int = Field(24, ge=4)
    """Channels of the first layer."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization behind each convolution; ``group`` has 8 channels a group and no statistics across clips."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier."""
    weights: str | None = None
    """Start from these weights, the head excepted if its classes are others: a file or a model folder of this project. null:
    random."""


ARCHS = ("slow_resnet", "timesformer", "r3d_18", "r2plus1d_18", "plain_conv3d")

Network = Annotated[
    SlowResNetSection | TimeSformerSection | VideoResNetSection | PlainConv3dSection, Field(discriminator="arch")
]


class OptimizerSection(Section):
    """SGD, as in the paper; everything but the algorithm is choice."""

    algorithm: Literal["sgd", "adamw"] = Field("sgd", json_schema_extra=PAPER)
    """SGD (paper), or AdamW (Loshchilov & Hutter, 2019), the usual one for transformers: set ``lr`` near 0.0005 with it."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate for the whole global batch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum; of AdamW its first beta."""
    second_moment: float = Field(0.999, ge=0, lt=1)
    """AdamW's second beta; SGD has none. MAE (He et al., 2022) has 0.95."""
    nesterov: bool = False
    """Nesterov's momentum; SGD only. FixMatch and its relatives train with it."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay, not applied to norms, biases and embeddings."""
    clip_gradient_norm: float | None = Field(None, gt=0)
    """Largest gradient norm of this student; null: gradients are not clipped."""


class PrimarySection(Section):
    """The primary student: Slow-ResNet50 on a low frame rate."""

    network: Network = SlowResNetSection(arch="slow_resnet")
    clip: ClipSection = ClipSection(frames=8, fps=8.0, size=224)
    optimizer: OptimizerSection = Field(OptimizerSection(), json_schema_extra=MID_RUN)


class AuxiliarySection(Section):
    """The auxiliary student: TimeSformer ViT-S on a higher frame rate."""

    network: Network = TimeSformerSection(arch="timesformer")
    clip: ClipSection = ClipSection(frames=8, fps=16.0, size=224)
    optimizer: OptimizerSection = Field(OptimizerSection(lr=0.01, clip_gradient_norm=1.0), json_schema_extra=MID_RUN)
