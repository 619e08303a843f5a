"""Knobs: length, schedule, precision, what is written when, how it is judged, where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import PROTOCOL, SAME_WEIGHTS, Seconds, Section, Steps


class TrainSection(Section):
    """Length, schedule, precision, and what is written when."""

    steps: Steps = Field(20_000, ge=1)
    """Optimizer steps of the run."""
    warmup_steps: Steps = Field(500, ge=0)
    """Steps over which the learning rates rise linearly from 0, before ``schedule``."""
    schedule: Literal["cosine", "step"] = "cosine"
    """A cosine to 0 at the last step, or a factor of 0.1 at each of ``milestones``. The paper is silent: choice."""
    milestones: tuple[Annotated[Steps, Field(ge=1)], ...] = ()
    """Steps, ascending, at which ``schedule: step`` multiplies the learning rates by 0.1."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward passes. On a GPU fp32's products and convolutions run on the tensor cores (TF32: 10 bits of
    mantissa), unless ``deterministic``; bf16 needs NVIDIA's Ampere or a later one. fp16 scales the loss so that small gradients
    stay above 0; a step whose gradients overflow is left out."""
    accumulation: int = Field(1, ge=1)
    """Parts in which a worker takes its rows of a step through the students, one after the other; gradients add up, and the
    memory of activations falls. BatchNorm, the contrast's negatives and label policies see one part at a time, and EMA
    teachers move once a part. Must divide the rows of each worker; with fewer workers (elastic) there are more parts."""
    sync_batch_norm: bool = False
    """BatchNorm's statistics over all workers' clips instead of each worker's own. Choice: off, as on one GPU."""
    ema_decay: float | None = Field(None, ge=0, lt=1)
    """Evaluate a running mean of each student's weights, of this decay a step (0.999 is usual), instead of the weights
    themselves; it rises as (1 + step) / (10 + step) at the start. Choice: off."""
    compile: Literal["off", "inductor", "aot_eager"] = Field("off", json_schema_extra=SAME_WEIGHTS)
    """torch.compile of both students: ``inductor`` generates code and needs a C++ compiler on the CPU; ``aot_eager`` only
    traces, to find out whether the students can be compiled."""
    activation_checkpointing: bool = Field(False, json_schema_extra=SAME_WEIGHTS)
    """Keep only what enters a block of a student, and compute the rest again in the backward pass: a third more compute,
    a fraction of the memory. The gradients are the same."""
    deterministic: bool = False
    """Only algorithms whose sums have a fixed order, on the GPU too, where they are slower; what has none is an error. It also
    turns off TF32, and cuDNN's search for the fastest algorithm of each shape."""
    channels_last: bool = True
    """Convolution weights as channels_last_3d: the same sums in another order. On one core of a busy machine, forward and
    backward of the small Slow-ResNet took about 0.4 s instead of 0.97 s for 88 clips (n = 1)."""
    log_every: Steps = Field(10, ge=1, json_schema_extra=SAME_WEIGHTS)
    """Steps between two lines of metrics.jsonl (each line is the mean over the steps since the one before)."""
    save_scores_every: Steps = Field(10, ge=0, json_schema_extra=SAME_WEIGHTS)
    """Steps between two whose weak-view scores of the unlabeled videos are kept, for ``jobs.label_quality``; 0 keeps none. A
    kept step takes at most 8 bytes x unlabeled videos x classes: 32 KB for 40 videos and 101 classes;
    half as much again with ``method.file_label``."""
    checkpoint_every: Steps = Field(500, ge=1, json_schema_extra=SAME_WEIGHTS)
    """Steps between two checkpoints; the last step always makes one."""
    keep_checkpoints: int = Field(2, ge=1, json_schema_extra=SAME_WEIGHTS)
    """Newest checkpoints that are kept."""
    keep_best: int = Field(0, ge=0, json_schema_extra=SAME_WEIGHTS)
    """Checkpoints that are kept beside them because both students' mean accuracy on held-out videos (``jobs.label --hold-out``)
    is best. With 0 nothing is held against them, which costs nothing; otherwise each checkpoint waits for one view of each.
    The one that a signal leaves is not scored."""
    max_failures: int = Field(3, ge=0, json_schema_extra=SAME_WEIGHTS)
    """Failures without a new checkpoint after which the run stops; each new checkpoint sets the count to 0."""
    step_timeout_seconds: Seconds | None = Field(600.0, gt=0, json_schema_extra=SAME_WEIGHTS)
    """The run stops with a message when a step, its collectives or a checkpoint need longer (the first step: ten times that).
    null: never, for breakpoints."""

    @model_validator(mode="after")
    def _milestones_fit(self) -> TrainSection:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, found {list(self.milestones)}")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule: step needs milestones, for example [12000, 16000], and no other schedule has them")
        return self

    @model_validator(mode="after")
    def _compiles(self) -> TrainSection:
        if self.compile != "off" and self.activation_checkpointing:
            raise ValueError(
                f"compile={self.compile} and activation_checkpointing=true do not work together: the compiler cannot trace a "
                "block that is computed twice. Turn one of them off; if a step does not fit the memory then, raise accumulation"
            )
        return self


class MonitorSection(Section):
    """When the log warns of a failure that the method is known for. No knob of this section changes the result."""

    patience_steps: Steps = Field(100, ge=1)
    """Steps for which a failure pattern must hold, from line to line of metrics.jsonl, before it is reported."""


class TrackingSection(Section):
    """Where metrics go beside metrics.jsonl and TensorBoard's files, which every run has. No knob of this section changes the
    result."""

    mlflow: str | None = None
    """Tracking URI of MLflow, such as http://HOST:5000 (``pip install .[mlflow]``)."""
    wandb: Literal["offline", "online"] | None = None
    """Weights & Biases, into ``wandb/`` of the run folder or to its server, with the key that ``wandb login`` stored
    (``pip install .[wandb]``)."""
    project: str = "actnetformer"
    """MLflow's experiment and W&B's project."""


class EvaluationSection(Section):
    """Test protocol: clips x crops per video, scores averaged. Relatives use 10 x 3; the paper is silent."""

    split: Literal["test", "validation"] = Field("test", json_schema_extra=PROTOCOL)
    """What a run is evaluated on. ``validation``: the labeled videos that ``jobs.label --hold-out`` kept from training, or the
    manifest's val split where none were; choose knobs on it, so that test stays unseen."""
    clips: int = Field(10, ge=1, json_schema_extra=PROTOCOL)
    """Clips per video, evenly spaced in time."""
    crops: Literal[1, 3] = Field(3, json_schema_extra=PROTOCOL)
    """1: the center square; 3: both ends and the center of the longer side."""
    average: Literal["probabilities", "logits"] = Field("probabilities", json_schema_extra=PROTOCOL)
    """What a student's score of a video is the mean of, over its clips and crops: ``probabilities`` (softmax first), or
    ``logits`` (softmax of their mean, in which a very sure view counts more). The mean of both students is one of
    probabilities in either case. Choice: probabilities."""
    checkpoint: Literal["last", "best"] = Field("last", json_schema_extra=PROTOCOL)
    """Which weights are evaluated: those of the last step, or of the kept checkpoint that is best on held-out videos, which
    needs ``train.keep_best`` of 1 or more. Test videos never choose."""
    batch_views: int | None = Field(None, ge=1)
    """Views that go through the students at once; by default 64 on a GPU and 8 on a CPU. Where a GPU's memory does not hold as
    many, half of them, as often as it takes. The scores are the same but for rounding."""


class ScaleSection(Section):
    """Where the work runs. No knob of this section changes the result."""

    workers: int = Field(1, ge=0)
    """Train workers; 0 runs the same loop in the calling process, without Ray."""
    min_workers: int | None = Field(None, ge=1)
    """Elastic: the run starts and continues with any number of workers from this one to ``workers``, as the cluster has them.
    By default ``workers``: it waits for all."""
    resize_seconds: Seconds = Field(60.0, gt=0)
    """Elastic: time between two looks whether more workers could join; they begin at the newest checkpoint."""
    gpu: bool | None = None
    """Whether each worker computes on a GPU, with ``workers: 0`` this process; evaluation, prediction and benchmarks too. By
    default if there are GPUs; then too few, or a driver that torch cannot use, are errors, as they are with true. A run that
    the GPU's memory cannot hold by the estimate of ``--dry-run`` is refused before it starts, with the knob that makes it
    fit."""
    cpus_per_worker: float | None = Field(None, gt=0)
    """CPUs reserved for a worker; by default 1, or half of the CPUs that there are for each worker where that is less. With a
    GPU 2, if that is a quarter of them at most: the others decode (docs/stream.md says how many a GPU needs). A trial with
    ``workers: 0`` that runs beside others is one worker."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """GPUs reserved for a worker that gets one: 0.25 lets four trials share a GPU whose memory holds them."""
    cpus_per_decoder: float | None = Field(None, gt=0)
    """CPUs reserved for a decode task; by default half a CPU, because a task also waits for its file and for Ray, or less on
    small machines."""
    decode_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that decode, as given to ``ray start --labels``, e.g. ``{role: decode}``; empty: any node."""
    train_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that train workers run on, e.g. ``{role: train}``; empty: any."""
    torch_threads: int | None = Field(None, ge=1)
    """Threads of torch in each worker; by default the machine's cores shared among its workers."""
    start_timeout_seconds: Seconds = Field(60.0, gt=0)
    """Time limit for the cluster to have room for the workers, and twice of it for them to run; a start that takes longer is
    given up, counts as one of ``train.max_failures`` and is tried again. Raise it if nodes must be started first."""
    stop_seconds: Seconds = Field(25.0, gt=0)
    """After SIGTERM or Ctrl-C: time for the workers to end their step and write a checkpoint. Kubernetes kills after 30 s."""

    @model_validator(mode="after")
    def _minimum_fits(self) -> ScaleSection:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self
