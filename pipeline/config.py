"""Every knob of a run, once: typed, frozen, documented. YAML files and ``key=value`` words only override.

The defaults are the paper's setting as far as it is known; where the paper is silent the docstring says "choice".
``load_config`` reports all mistakes at once, each with the nearest existing name.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import posixpath
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import storage
from pipeline.errors import UserError


class Section(BaseModel):
    """A group of knobs; unknown names are errors and values never change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class RunSection(Section):
    """Which run this is and where its folder lies."""

    name: str = Field("actnetformer", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is ``storage_path/name``. The same name again continues the run."""
    storage_path: str = "runs"
    """Folder that holds run folders: on several nodes one that they share, or a URI of object storage (s3://, gs://, ...)."""
    staging_path: str | None = None
    """Local folder where runs on object storage are put together between two checkpoints; by default in the system's
    temporary folder. Needs room for ``train.keep_checkpoints`` and one more."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Everything random is derived from (seed, step, video, view)."""


class DataSection(Section):
    """Which videos, which of them are labeled, and how many go into one optimizer step."""

    manifest: str = "data/manifest.parquet"
    """Parquet manifest written by ``jobs.prepare``: a path or a URI (s3://, gs://, hdfs://, ...)."""
    labels: str | None = None
    """Parquet label subset; by default ``labels.parquet`` beside the manifest."""
    root: str | None = None
    """Folder or URI that relative video paths start from; by default the one stored in the manifest."""
    labeled_per_step: int = Field(8, ge=1)
    """B, labeled videos in one optimizer step over all workers: the global batch, independent of their number."""
    unlabeled_per_labeled: int = Field(5, ge=0)
    """mu, unlabeled videos for each labeled one. The paper's ratio is 1:5. Methods without unlabeled data use 0."""
    decode_size: int = Field(256, ge=16)
    """Side in pixels of the square window that is decoded, at short-side scale; views crop inside it. Choice."""
    moments: Literal["shared", "own"] = "shared"
    """Whether both students' clips of a video are centered on the same moment, or each lies at a random one of its own, so
    that the contrast compares different times. The paper's figure shows one clip: shared is choice."""
    match: Literal["count", "span"] = "count"
    """``count``: each clip has its ``clip.frames``, so that a higher ``clip.fps`` sees fewer seconds. ``span``: the auxiliary's
    ``clip.frames`` becomes as many as make it as long as the primary's clip: primary frames / primary fps * auxiliary fps."""
    clips_per_block: int = Field(24, ge=1)
    """Least videos decoded by one task: larger blocks spread Ray's cost of 20-70 ms a block over more clips."""
    blocks_ahead: int = Field(4, ge=1)
    """Decoded blocks per worker that may wait for a slow trainer in the object stores; decode tasks pause above. They, two for
    each decode task and up to four on each worker's side are all of the stream's memory. A few ride out a slow video."""
    max_quarantined_share: float = Field(0.05, ge=0, le=1)
    """The run stops when more than this share of the manifest's usable videos failed to decode."""
    isolate_decoder: bool = True
    """Decode in child processes, so that a decoder that hangs, crashes or leaks costs one video and not the run."""
    video_timeout_seconds: float = Field(30.0, gt=0)
    """A decoder that needs longer for one video is stopped, and the video replaced; needs ``isolate_decoder``."""
    decoder_memory_mb: float = Field(2048.0, ge=256)
    """A decoder process that has more MiB for itself after a video is replaced by a fresh one; twice as many stop it."""
    decode_timeout_seconds: float = Field(300.0, gt=0)
    """The run stops with a message when no batch arrives for this long, first batch excepted (ten times that). Several times
    ``video_timeout_seconds``, for a block may hold several videos that hang."""


class ClipSection(Section):
    """What one student sees of a video: ``frames`` frames at ``fps`` frames a second, ``size`` pixels square."""

    frames: int = Field(8, ge=1)
    """Frames in a clip. The paper's primary input is 3 x 8 x 224 x 224."""
    fps: float = Field(8.0, gt=0)
    """Frames per second of video time, whatever the file's own rate: primary lower, auxiliary higher."""
    size: int = Field(224, ge=8)
    """Side of the square clip that the student sees, in pixels."""
    modality: Literal["rgb", "temporal_gradient", "optical_flow"] = "rgb"
    """What is made of the frames before the student sees them, in training and evaluation: LTG's second student sees
    ``temporal_gradient``, differences of neighboring frames. ``optical_flow`` needs OpenCV (``pip install .[flow]``)."""


class SlowResNetSection(Section):
    """Slow pathway ResNet: no temporal stride, temporal kernels only in res4 and res5."""

    arch: Literal["slow_resnet"] = "slow_resnet"
    depth: Literal[10, 14, 18, 26, 34, 50, 101] = 50
    """Layers. 50 is the paper's; 10, 18 and 34 use basic blocks, the others bottlenecks; 10, 14 and 26 have fewer blocks."""
    width: int = Field(64, ge=4)
    """Channels of the stem; 64 is ResNet's."""
    temporal_kernel: Literal[1, 3, 5] = 3
    """Frames under a kernel in res4 and res5: 3 is the paper's, 1 makes a network that looks at single frames."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization. ``group`` (8 channels a group) has no statistics across clips, so results do not depend on workers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier. Choice."""
    weights: str | None = None
    """Start from these weights, the head excepted if its classes are others: ``timm:NAME`` (an image ResNet by timm, e.g.
    ``timm:resnet50.a1_in1k``, downloaded, inflated in time) or a file (.safetensors, .pt, .pth, .pyth) with the keys of
    timm, SlowFast, PyTorchVideo, or this project. None, random, is the paper's."""


class TimeSformerSection(Section):
    """TimeSformer on ViT blocks: divided space-time attention by default. ViT-S is the paper's."""

    arch: Literal["timesformer"] = "timesformer"
    width: int = Field(384, ge=8)
    """Embedding width: 192 (Ti), 384 (S), 768 (B)."""
    depth: int = Field(12, ge=1)
    """Transformer blocks."""
    heads: int = Field(6, ge=1)
    """Attention heads."""
    patch: int = Field(16, ge=2)
    """Side of a patch in pixels; must divide the clip's size."""
    tubelet: int = Field(1, ge=1)
    """Frames in one patch: 1 as in the paper, 2 as in ViViT and VideoMAE; must divide the clip's frames."""
    attention: Literal["divided", "joint", "space"] = "divided"
    """Divided space-time, joint space-time, or space only."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier. Choice."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth rate of the last block, rising linearly from 0. Choice."""
    weights: str | None = None
    """Start from these weights, the head excepted if its classes are others: ``timm:NAME`` (an image ViT by timm, e.g.
    ``timm:deit_small_patch16_224.fb_in1k``, downloaded) or a file (.safetensors, .pt, .pth, .pyth) with the keys of timm, the
    TimeSformer authors, or this project. Embeddings are interpolated to the clip. None, random, is the paper's."""


class VideoResNetSection(Section):
    """3-D ResNets of torchvision, for the relatives: LTG's are ``r3d_18``, CMPL's auxiliary is a narrower one."""

    arch: Literal["r3d_18", "r2plus1d_18"] = "r3d_18"
    """3-D kernels (33.2 M parameters), or 2-D in space and 1-D in time (31.3 M)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier. Choice."""
    weights: str | None = None
    """Start from these weights, the head excepted if its classes are others: ``torchvision:NAME`` (e.g.
    ``torchvision:KINETICS400_V1``, downloaded) or a file with torchvision's or this project's keys. None: random."""


ARCHS = ("slow_resnet", "timesformer", "r3d_18", "r2plus1d_18")
Network = Annotated[SlowResNetSection | TimeSformerSection | VideoResNetSection, Field(discriminator="arch")]


def _with_arch(tree: Any, arch: str) -> Any:
    """``network.width=12`` alone keeps the student's own architecture."""
    if isinstance(tree, dict) and isinstance(tree.get("network"), dict) and "arch" not in tree["network"]:
        return {**tree, "network": {"arch": arch, **tree["network"]}}
    return tree


class OptimizerSection(Section):
    """SGD, as in the paper; everything but the algorithm is choice."""

    algorithm: Literal["sgd", "adamw"] = "sgd"
    """SGD (paper), or AdamW (Loshchilov & Hutter, 2019), the usual one for transformers: set ``lr`` near 0.0005 with it."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate for the whole global batch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum; of AdamW its first beta."""
    second_moment: float = Field(0.999, ge=0, lt=1)
    """AdamW's second beta; SGD has none."""
    nesterov: bool = False
    """Nesterov's momentum; SGD only."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay, not applied to norms, biases and embeddings."""
    clip_gradient_norm: float | None = Field(None, gt=0)
    """Largest gradient norm of this student; none by default."""


class PrimarySection(Section):
    """The primary student: Slow-ResNet50 on a low frame rate."""

    network: Network = SlowResNetSection()
    clip: ClipSection = ClipSection(frames=8, fps=8.0, size=224)
    optimizer: OptimizerSection = OptimizerSection()

    @model_validator(mode="before")
    @classmethod
    def _default_arch(cls, tree: Any) -> Any:
        return _with_arch(tree, "slow_resnet")


class AuxiliarySection(Section):
    """The auxiliary student: TimeSformer ViT-S on a higher frame rate."""

    network: Network = TimeSformerSection()
    clip: ClipSection = ClipSection(frames=8, fps=16.0, size=224)
    optimizer: OptimizerSection = OptimizerSection(lr=0.01, clip_gradient_norm=1.0)

    @model_validator(mode="before")
    @classmethod
    def _default_arch(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("clip"), dict):
            tree = {**tree, "clip": {"fps": 16.0, **tree["clip"]}}  # clip.frames=16 alone keeps this student's rate
        return _with_arch(tree, "timesformer")


class LabelSection(Section):
    """Label policy: whose prediction on weak views labels a student's strong views, and how much each label counts."""

    source: Literal["other", "self", "mean", "ema"] | None = None
    """Who labels: the ``other`` student (cross pseudo-labels), the student ``self``, the softmax of both students' ``mean``
    logits, or an ``ema`` of the student's own weights. None is the method's own: other for actnetformer and cmpl, self for
    fixmatch, mvpl and tcl, mean for ltg, ema for svformer."""
    hard: bool = True
    """Whether the label is the most probable class (every paper here), or the probabilities themselves."""
    temperature: float = Field(1.0, gt=0)
    """Of soft labels: below 1 sharpens them."""
    thresholds: Literal["fixed", "flexmatch", "freematch", "softmatch"] = "fixed"
    """Which labels count: confidence over ``confidence_threshold`` (fixed, FixMatch); over a class's share of it that rises
    with the class's labels so far (flexmatch); over running confidence, per class (freematch); or a weight that falls off
    below the running confidence (softmatch)."""
    distribution_alignment: Literal["off", "uniform", "labeled"] = "off"
    """Before all else: probabilities times target over running mean, normalized (ReMixMatch). The target is ``uniform``
    (SoftMatch's) or the class distribution of the ``labeled`` clips."""
    primary_threshold: float | None = Field(None, ge=0, le=1)
    """Confidence threshold of labels that the primary gives; None: ``confidence_threshold``."""
    auxiliary_threshold: float | None = Field(None, ge=0, le=1)
    """Confidence threshold of labels that the auxiliary gives: a transformer from scratch is confident later."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Of the policies' running means, a step. FreeMatch and SoftMatch have 0.999 for 2^20 steps; choice for 10^4."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the weights of ``ema`` teachers, a step (SVFormer: 0.99)."""


class StartSection(Section):
    """Steps after ``supervised_steps`` at which each loss begins to count."""

    supervised: int = Field(0, ge=0)
    """Of the supervised losses, from the run's first step: above 0 only unlabeled videos count until then."""
    pseudo_label: int = Field(0, ge=0)
    """Of gamma. TCL's third stage, pseudo-labels after contrast, is a start later than contrast's."""
    contrast: int = Field(0, ge=0)
    """Of beta."""
    group_contrast: int = Field(0, ge=0)
    """Of TCL's contrast of pseudo-classes."""
    alignment: int = Field(0, ge=0)
    """Of LTG's alignment."""
    mix: int = Field(0, ge=0)
    """Of SVFormer's mixed clips."""


class RampSection(Section):
    """Steps over which each loss rises linearly from 0 after its start; None: ``ramp_steps``."""

    supervised: int = Field(0, ge=0)
    """Of the supervised losses."""
    pseudo_label: int | None = Field(None, ge=0)
    """Of gamma."""
    contrast: int | None = Field(None, ge=0)
    """Of beta."""
    group_contrast: int | None = Field(None, ge=0)
    """Of TCL's contrast of pseudo-classes."""
    alignment: int | None = Field(None, ge=0)
    """Of LTG's alignment."""
    mix: int | None = Field(None, ge=0)
    """Of SVFormer's mixed clips."""


class MethodSection(Section):
    """The loss: L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lca for ActNetFormer; other methods have other terms."""

    name: str = "actnetformer"
    """A name of ``pipeline.methods.METHODS``: supervised, fixmatch, cmpl, mvpl, tcl, ltg, svformer or actnetformer. Every
    method trains both students; one that is about a single network (fixmatch, mvpl, tcl, svformer) trains each for itself."""
    confidence_threshold: float = Field(0.8, ge=0, le=1)
    """tau as a threshold: weak-view confidence from which a pseudo-label is kept (paper: 0.8)."""
    supervised_weight: float = Field(1.0, ge=0)
    """Weight of the supervised losses (every paper: 1)."""
    pseudo_label_weight: float = Field(2.0, ge=0)
    """gamma, weight of the pseudo-label losses (paper: 2)."""
    contrast_weight: float = Field(2.0, ge=0)
    """beta, weight of the contrastive loss (paper: 2)."""
    contrast_temperature: float = Field(0.5, gt=0)
    """tau as a temperature: the paper's summary says 0.8; TCL, whose loss it adopts, 0.5. Choice: 0.5."""
    contrast_features: Literal["probabilities", "embeddings", "projection"] = "probabilities"
    """What is aligned: softmax vectors (as TCL; fits the paper's parameter count), the pooled features of equal width, or
    their ``projection`` by a small network of each student's (as LTG)."""
    contrast_negatives: Literal["both", "cross"] = "both"
    """Whose features of other videos repel: both students' (the paper's figure), or the other student's only (LTG)."""
    contrast_level: Literal["video", "frame"] = "video"
    """Whether a student's feature stands for its clip, or for each of its frames, paired with the other student's frame
    nearest in time; other frames of the same video are then no negatives. The paper leaves it open: choice."""
    projection_width: int = Field(128, ge=2)
    """Outputs of the projection networks. Choice: SimCLR's 128; LTG's configurations have 512."""
    group_contrast_weight: float = Field(1.0, ge=0)
    """TCL: weight of the contrast between mean predictions of each pseudo-class (the authors' command: 1, beside 9 of
    ``contrast_weight``)."""
    alignment_weight: float = Field(1.0, ge=0)
    """LTG: weight of 1 - cosine of the primary's to the auxiliary's features (paper: 1)."""
    mix_weight: float = Field(2.0, ge=0)
    """SVFormer: weight of the squared error on clips mixed in tubes of patches. Choice: its pseudo-labels' weight."""
    mix_patch: int = Field(16, ge=1)
    """SVFormer: side in pixels of a tube; the transformer's patch, so that whole tokens are mixed."""
    mix_concentration: float = Field(10.0, gt=0)
    """SVFormer: alpha of the Beta(alpha, alpha) that the mixed share is drawn from (paper: 10)."""
    mix_consistency: Literal["mse", "kl"] = "mse"
    """SVFormer: squared error between probabilities (paper), or Kullback-Leibler divergence."""
    modalities: tuple[Literal["rgb", "temporal_gradient", "optical_flow"], ...] = ("rgb", "temporal_gradient")
    """MvPL: what the shared network sees, rgb first, which is what it is tested on. The paper has all three; flow is left
    out because OpenCV on the CPU costs more than the students here (``pip install .[flow]``)."""
    supervised_steps: int = Field(0, ge=0)
    """Steps with the supervised loss only, before unlabeled videos count. Choice; FixMatch's video relatives use a warm-up."""
    ramp_steps: int = Field(0, ge=0)
    """Steps over which gamma and beta rise linearly from 0 after ``supervised_steps``. Choice."""
    start: StartSection = StartSection()
    ramp: RampSection = RampSection()
    labels: LabelSection = LabelSection()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a label's weight that is spread over all classes in the supervised loss (Szegedy et al., 2016). Choice: off."""
    mixup: float = Field(0.0, ge=0)
    """alpha of the Beta(alpha, alpha) by which labeled clips, and their labels, are mixed with the labeled clip before them
    (Zhang et al., 2018; 0.2 is usual); the same share for both students. 0, off, is choice."""
    batch_norm: Literal["separate", "joint"] = "separate"
    """Whether labeled, weak and strong clips go through a student as three batches, each with BatchNorm statistics of its
    own, or concatenated as one. Choice: in a prototype one joint batch took the primary from 47 to 19 % at equal
    supervised signal; not measured with today's students yet."""

    @model_validator(mode="after")
    def _rgb_first(self) -> MethodSection:
        if self.modalities[:1] != ("rgb",) or len(set(self.modalities)) < len(self.modalities):
            raise ValueError("modalities must begin with rgb, which the network is tested on, and name each once")
        return self


class TimeSection(Section):
    """Random changes of a view in time, by choosing among its decoded frames; all off by default (choice)."""

    reverse: float = Field(0.0, ge=0, le=1)
    """Probability to play the clip backward. Use 0 where direction is the class."""
    warp: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """SVFormer's temporal warp: how many frames are kept, drawn from these; each lost one shows its nearest kept one.
    SVFormer: [2, 4, 8] of 8. Empty: off."""
    slowest: float = Field(1.0, gt=0, le=1)
    """Least playing speed, drawn uniformly up to 1, around the clip's middle, frames repeated. Faster than 1 would need
    frames that were not decoded: decode at a higher ``clip.fps`` instead."""


class WeakSection(Section):
    """Weak view: scale jitter, crop, flip (secondary source for the paper)."""

    min_scale: float = Field(0.7, gt=0, le=1)
    """Least side of the crop as a share of the decoded window; drawn uniformly up to 1."""
    max_aspect: float = Field(1.0, ge=1, le=4)
    """Largest ratio of the crop's sides: 1 is short-side jitter with square crops; 4/3 makes it a random resized crop."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip. Use 0 where direction is the class."""
    time: TimeSection = TimeSection()


class StrongSection(Section):
    """Strong view: the weak view's geometry drawn anew, then RandAugment and cutout (the paper is silent: choice)."""

    ops: int = Field(2, ge=0)
    """RandAugment operations per clip."""
    magnitude: float = Field(0.5, ge=0, le=1)
    """Strength of each operation, as a share of RandAugment's full range; drawn uniformly below it."""
    geometric: bool = True
    """Whether rotate, shear and translate are among the operations."""
    appearance: bool = True
    """Whether color, brightness, contrast, sharpness and the like are among the operations."""
    without: tuple[str, ...] = ()
    """Operations to leave out, by name (see ``pipeline.clips.operations.OPERATIONS``), to study each alone."""
    cutout: float = Field(0.5, ge=0, le=1)
    """Largest side of the erased square, as a share of the clip's size; 0 turns it off."""
    time: TimeSection = TimeSection()


class ViewsSection(Section):
    """Random views, the same parameters for all frames of a clip."""

    weak: WeakSection = WeakSection()
    strong: StrongSection = StrongSection()


class TrainSection(Section):
    """Length, schedule, precision, and what is written when."""

    steps: int = Field(20_000, ge=1)
    """Optimizer steps of the run."""
    warmup_steps: int = Field(500, ge=0)
    """Steps over which the learning rates rise linearly from 0, before ``schedule``."""
    schedule: Literal["cosine", "step"] = "cosine"
    """A cosine to 0 at the last step, or a factor of 0.1 at each of ``milestones``. The paper is silent: choice."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps, ascending, at which ``schedule: step`` multiplies the learning rates by 0.1."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward passes. fp16 scales the loss so that small gradients stay above 0; a step whose
    gradients overflow is left out."""
    accumulation: int = Field(1, ge=1)
    """Parts in which a worker takes its rows of a step through the students, one after the other; gradients add up, and the
    memory of activations falls. BatchNorm, the contrast's negatives and label policies see one part at a time, and EMA
    teachers move once a part. Must divide the rows of each worker."""
    sync_batch_norm: bool = False
    """BatchNorm's statistics over all workers' clips instead of each worker's own. Choice: off, as on one GPU."""
    ema_decay: float | None = Field(None, ge=0, lt=1)
    """Evaluate a running mean of each student's weights, of this decay a step (0.999 is usual), instead of the weights
    themselves; it rises as (1 + step) / (10 + step) at the start. Choice: off."""
    compile: Literal["off", "inductor", "aot_eager"] = "off"
    """torch.compile of both students: ``inductor`` generates code and needs a C++ compiler on the CPU; ``aot_eager`` only
    traces, to find out whether the students can be compiled."""
    activation_checkpointing: bool = False
    """Keep only what enters a block of a student, and compute the rest again in the backward pass: a third more compute,
    a fraction of the memory. The gradients are the same."""
    deterministic: bool = False
    """Only algorithms whose sums have a fixed order, on the GPU too, where they are slower; what has none is an error."""
    channels_last: bool = True
    """Convolution weights as channels_last_3d: the same sums in another order. On one core of a busy machine, forward and
    backward of the small Slow-ResNet took about 0.4 s instead of 0.97 s for 88 clips (n = 1)."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics.jsonl (each line is the mean over the steps since the one before)."""
    save_scores_every: int = Field(10, ge=0)
    """Steps between two whose weak-view scores of the unlabeled videos are kept, for ``jobs.label_quality``; 0 keeps none. A
    kept step takes at most 8 bytes x unlabeled videos x classes: 32 KB for 40 videos and 101 classes."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between two checkpoints; the last step always makes one."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: int = Field(0, ge=0)
    """Checkpoints that are kept beside them because both students' mean accuracy on held-out videos (``jobs.label --hold-out``)
    is best. With 0 nothing is held against them, which costs nothing; otherwise each checkpoint waits for one view of each."""
    max_failures: int = Field(3, ge=0)
    """Failures without a new checkpoint after which the run stops; each new checkpoint sets the count to 0."""
    step_timeout_seconds: float | None = Field(600.0, gt=0)
    """The run stops with a message when a step, its collectives or a checkpoint need longer (the first step: ten times that).
    null: never, for breakpoints."""

    @model_validator(mode="after")
    def _milestones_fit(self) -> TrainSection:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, found {list(self.milestones)}")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule: step needs milestones, for example [12000, 16000], and no other schedule has them")
        return self


class MonitorSection(Section):
    """When something that the method is known to fail by is said to have happened. None of these changes the result."""

    patience_steps: int = Field(100, ge=1)
    """Steps for which a signature must hold, from line to line of metrics.jsonl, until it is told. Choice."""
    least_label_accuracy: float = Field(0.6, ge=0, le=1)
    """Accuracy of kept labels below which labels harm more than they help (the paper's summary: 60 %, wanted over 70 %)."""
    least_mask_rate: float = Field(0.01, ge=0, le=1)
    """Share of labels kept below which the unlabeled videos teach nothing. Choice."""
    largest_contrast_share: float = Field(0.5, gt=0, le=1)
    """The contrast's share of the gradient at a student's outputs above which it dominates. Choice: the summary says only
    that a beta too high makes training unstable."""
    least_alignment: float = Field(0.02, ge=-1, le=2)
    """Cosine of the students' features of the same video, less that of different videos, below which they do not align, as
    happens when their frame rates are too far apart. Choice."""
    largest_class_share: float = Field(0.6, gt=0, le=1)
    """Share of one class among kept labels above which they have collapsed; never less than three times its even share.
    Choice."""
    largest_loss: float = Field(1.5, gt=0)
    """Supervised loss, as a multiple of that of guessing, ln K, above which a student has diverged. Choice."""


class TrackingSection(Section):
    """Where metrics go beside metrics.jsonl and TensorBoard's files, which every run has. None changes the result."""

    mlflow: str | None = None
    """Tracking URI of MLflow, such as http://HOST:5000 (``pip install .[mlflow]``)."""
    wandb: Literal["offline", "online"] | None = None
    """Weights & Biases, into ``wandb/`` of the run folder or to its server, with the key that ``wandb login`` stored
    (``pip install .[wandb]``)."""
    project: str = "actnetformer"
    """MLflow's experiment and W&B's project."""


class EvaluationSection(Section):
    """Test protocol: clips x crops per video, scores averaged. Relatives use 10 x 3; the paper is silent."""

    split: Literal["test", "validation"] = "test"
    """What a run is evaluated on. ``validation``: the labeled videos that ``jobs.label --hold-out`` kept from training, or the
    manifest's val split where none were; choose knobs on it, so that test stays unseen."""
    clips: int = Field(10, ge=1)
    """Clips per video, evenly spaced in time."""
    crops: Literal[1, 3] = 3
    """1: the center square; 3: both ends and the center of the longer side."""
    batch_videos: int = Field(8, ge=1)
    """Views that go through the students at once."""


class ScaleSection(Section):
    """Where the work runs. None of these changes the result."""

    workers: int = Field(1, ge=0)
    """Train workers; 0 runs the same loop in the calling process, without Ray."""
    min_workers: int | None = Field(None, ge=1)
    """Elastic: the run starts and goes on with any number of workers from this one to ``workers``, as the cluster has them.
    By default ``workers``: it waits for all."""
    resize_seconds: float = Field(60.0, gt=0)
    """Elastic: time between two looks whether more workers could join; they begin at the newest checkpoint."""
    gpu: bool | None = None
    """Whether each worker gets a GPU; by default if the cluster has one for each."""
    cpus_per_worker: float | None = Field(None, gt=0)
    """CPUs reserved for a worker; by default 1, or a fair fraction on small machines. A trial with ``workers: 0`` that runs
    beside others is one worker."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """GPUs reserved for a worker that gets one: 0.25 lets four trials share a GPU whose memory holds them."""
    cpus_per_decoder: float | None = Field(None, gt=0)
    """CPUs reserved for a decode task; by default 1, or a fraction on small machines."""
    decode_labels: dict[str, str] = {}
    """Labels of the nodes that decode, as given to ``ray start --labels``, e.g. ``{role: decode}``; empty: any node."""
    train_labels: dict[str, str] = {}
    """Labels of the nodes that train workers run on, e.g. ``{role: train}``; empty: any."""
    torch_threads: int | None = Field(None, ge=1)
    """Threads of torch in each worker; by default the machine's cores shared among its workers."""
    start_timeout_seconds: float = Field(180.0, gt=0)
    """Time limit for the workers to start, with a message when it passes."""
    stop_seconds: float = Field(25.0, gt=0)
    """After SIGTERM or Ctrl-C: time for the workers to end their step and write a checkpoint. Kubernetes kills after 30 s."""

    @model_validator(mode="after")
    def _minimum_fits(self) -> ScaleSection:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self


class Config(Section):
    """All knobs of a run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    primary: PrimarySection = PrimarySection()
    auxiliary: AuxiliarySection = AuxiliarySection()
    method: MethodSection = MethodSection()
    views: ViewsSection = ViewsSection()
    train: TrainSection = TrainSection()
    monitors: MonitorSection = MonitorSection()
    tracking: TrackingSection = TrackingSection()
    evaluation: EvaluationSection = EvaluationSection()
    scale: ScaleSection = ScaleSection()

    @model_validator(mode="after")
    def _spans_match(self) -> Config:
        if self.data.match == "span":
            slow, fast = self.primary.clip, self.auxiliary.clip
            frames = slow.frames / slow.fps * fast.fps
            if abs(frames - round(frames)) > 1e-6 or frames < 1:
                raise ValueError(
                    f"data.match=span: {slow.frames} frames at primary.clip.fps={slow.fps:g} are {frames:g} frames at "
                    f"auxiliary.clip.fps={fast.fps:g}, which is no whole number"
                )
            clip = fast.model_copy(update={"frames": round(frames)})
            object.__setattr__(self, "auxiliary", self.auxiliary.model_copy(update={"clip": clip}))
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        for name in ("primary", "auxiliary"):
            student = getattr(self, name)
            net, clip = student.network, student.clip
            if isinstance(net, TimeSformerSection):
                if clip.size % net.patch:
                    raise ValueError(f"{name}.network.patch={net.patch} must divide {name}.clip.size={clip.size}")
                if clip.frames % net.tubelet:
                    raise ValueError(f"{name}.network.tubelet={net.tubelet} must divide {name}.clip.frames={clip.frames}")
                if net.width % net.heads:
                    raise ValueError(f"{name}.network.heads={net.heads} must divide {name}.network.width={net.width}")
            if clip.size > self.data.decode_size:
                raise ValueError(f"{name}.clip.size={clip.size} is larger than data.decode_size={self.data.decode_size}")
        return self

    @property
    def unlabeled_per_labeled(self) -> int:
        """mu as the method uses it: 0 for methods that learn from labels only."""
        return 0 if self.method.name == "supervised" else self.data.unlabeled_per_labeled

    @property
    def labels_path(self) -> str:
        """Path of the label subset."""
        return self.data.labels or posixpath.join(posixpath.dirname(self.data.manifest), "labels.parquet")

    @property
    def run_folder(self) -> Path:
        """``storage_path/name``; for a URI the local folder where it is put together (see ``pipeline.run_store``)."""
        if not storage.is_remote(self.run.storage_path):
            return Path(storage.local_path(self.run.storage_path)).expanduser().resolve() / self.run.name
        staging = self.run.staging_path or os.path.join(tempfile.gettempdir(), f"actnetformer-{os.getuid()}")
        place = hashlib.sha256(self.run.storage_path.rstrip("/").encode()).hexdigest()[:16]
        return Path(staging).expanduser().resolve() / place / self.run.name

    @property
    def run_store(self) -> str | None:
        """URI of the run folder where it lies on object storage, else None."""
        place = self.run.storage_path.rstrip("/")
        return f"{place}/{self.run.name}" if storage.is_remote(place) else None

    def result_knobs(self) -> dict[str, Any]:
        """The knobs that determine the trained weights: not names and places, not scale, logging or evaluation."""
        return self.model_dump(
            mode="json",
            exclude={
                "run": {"name", "storage_path", "staging_path"},
                "data": {
                    "manifest",
                    "labels",
                    "root",
                    "clips_per_block",
                    "blocks_ahead",
                    "max_quarantined_share",
                    "decode_timeout_seconds",
                    "isolate_decoder",
                    "video_timeout_seconds",
                    "decoder_memory_mb",
                },
                "train": {
                    "log_every",
                    "save_scores_every",
                    "checkpoint_every",
                    "keep_checkpoints",
                    "keep_best",
                    "max_failures",
                    "step_timeout_seconds",
                    "compile",
                    "activation_checkpointing",
                },
                "monitors": True,
                "tracking": True,
                "evaluation": True,
                "scale": True,
            },
        )

    def fingerprint(self) -> str:
        """Hash of ``result_knobs``."""
        return hashlib.sha256(json.dumps(self.result_knobs(), sort_keys=True).encode()).hexdigest()[:16]

    def with_absolute_paths(self) -> Config:
        """The same with local paths made absolute, for processes that run in other folders."""
        data = {"manifest": _absolute(self.data.manifest), "labels": _absolute(self.labels_path)}
        root = {"root": _absolute(self.data.root)} if self.data.root else {}
        staging = {"staging_path": _absolute(self.run.staging_path)} if self.run.staging_path else {}
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={**data, **root}),
                "run": self.run.model_copy(update={"storage_path": _absolute(self.run.storage_path), **staging}),
            }
        )


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Defaults, then the YAML file, then ``dotted.key=value`` words (values in YAML syntax), in this order.

    Raises UserError with all mistakes at once: unknown keys with the nearest name, values of a wrong type or range.
    """
    tree: dict[str, Any] = {} if path is None else _read_yaml(Path(path))
    return override(tree, overrides, source=str(path) if path else "command line")


def override(base: Mapping[str, Any], overrides: Iterable[str], source: str) -> Config:
    """A nested mapping changed by ``dotted.key=value`` words. Raises UserError with all mistakes at once."""
    tree: dict[str, Any] = copy.deepcopy(dict(base))
    mistakes: list[str] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key:
            mistakes.append(f"'{word}': write overrides as key=value, for example train.steps=100")
            continue
        try:
            _set(tree, key.split("."), yaml.safe_load(value) if value else None)
        except (yaml.YAMLError, TypeError) as error:
            mistakes.append(f"'{word}': {str(error).splitlines()[0]}")
    return parse_config(tree, source=source, mistakes=mistakes)


def parse_config(tree: Mapping[str, Any], source: str = "config", mistakes: Iterable[str] = ()) -> Config:
    """Validate a nested mapping. Raises UserError listing all mistakes with the nearest names."""
    found = list(mistakes)
    config = Config()
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found += [_explain(detail) for detail in error.errors()]
    if found:
        raise UserError(f"{len(found)} mistake{'s' * (len(found) > 1)} in the configuration ({source}):", found)
    return config


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key that exists, in order of declaration."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        children = _sections(field.annotation)
        for child in children:
            keys += [key for key in all_keys(child, f"{prefix}{name}.") if key not in keys]
        if not children:
            keys.append(f"{prefix}{name}")
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return []


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise TypeError(f"'{key}' is a value, not a section")
        tree = child
    tree[keys[-1]] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f" (did you mean {path.parent / near[0]}?)" if near else ""
        raise UserError(f"config file not found: {path}{hint}") from None
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"config file {path} must be a mapping of sections, found {type(tree).__name__}")
    return tree or {}


def _explain(detail: Any) -> str:
    # a union adds its tag (the arch) to the location; it is no key
    parts = [str(part) for part in detail["loc"] if part not in ARCHS]
    key = ".".join(parts)
    if detail["type"] == "extra_forbidden":
        keys = all_keys()
        names = keys + sorted({".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)})
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        near = near or [k for k in keys if k.split(".")[-1] == parts[-1]][:1]
        near = near or [k for k in keys if difflib.get_close_matches(parts[-1], [k.split(".")[-1]], cutoff=0.75)][:1]
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}, got {detail['input']!r}" if key else message
