"""Loads the inputs of training steps, with this project's own loader and with each peer's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.bench.peers.requests import MakeViews, RowViews, TensorColumns
from pipeline.clips.batch import Batch
from pipeline.clips.source import VideoSource
from pipeline.config import STUDENTS, Config
from pipeline.methods import UnlabeledViews, Views
from pipeline.processes.isolation import count_cores
from pipeline.stream.in_process import load_batches

TIMEOUT_SECONDS = 120.0
"""How long a batch may take to arrive from processes that run already."""


@dataclass(frozen=True)
class StepInput:
    """The input of one training step."""

    batch: Batch
    views: Views | None = None
    """The views of the batch; None if the step makes them of the batch's clips, as this project's step does."""


@dataclass(frozen=True)
class StepsRequest:
    """The steps that a loader is asked for, from the first one of the run on."""

    source: VideoSource
    config: Config
    steps: int
    """The number of steps that are used. A loader may go on decoding beyond them, as in the middle of a run."""
    device: torch.device


Loader = Callable[[StepsRequest], Iterator[StepInput]]
"""A function that yields the inputs of the steps."""
STEPS_AHEAD = 16
"""The number of steps that a loader may decode beyond those that are timed: more than any of them holds in advance."""


def build_data_loader(make: MakeViews) -> Loader:
    """Returns a loader that is a torch ``DataLoader`` with a forked process for each core and otherwise default options."""

    def load(request: StepsRequest) -> Iterator[StepInput]:
        rows, on_gpu = request.config.data.labeled_per_step, request.device.type == "cuda"
        data = RowViews(request.source, request.config, (request.steps + STEPS_AHEAD) * rows, make)
        loader: Any = DataLoader(
            data, batch_size=rows, num_workers=count_cores(), pin_memory=on_gpu, timeout=TIMEOUT_SECONDS,
            multiprocessing_context="fork",
        )  # fmt: skip
        for columns in loader:
            yield build_step_input(columns, request.device)

    return load


def build_step_input(columns: TensorColumns, device: torch.device) -> StepInput:
    """Builds a step's input from what a peer gives.

    ``columns`` are ``row`` [B], ``videos`` and ``labels`` [B, S], and ``student/kind`` [B, n, C, T, size, size], as a batch of
    ``RowViews`` has them.
    """
    labels, videos = columns["labels"], columns["videos"]

    def collect(kind: str) -> dict[str, torch.Tensor]:
        views_of = {name: columns[f"{name}/{kind}"].flatten(0, 1) for name in STUDENTS if f"{name}/{kind}" in columns}
        return {name: views.to(device, non_blocking=True) for name, views in views_of.items()}

    blank = torch.empty(*labels.shape, 0, dtype=torch.uint8)
    batch = Batch(columns["row"], videos, labels, blank, blank)
    unlabeled = None
    if weak := collect("weak"):
        hidden, numbers = (column[:, 1:].flatten().to(device) for column in (labels, videos))
        unlabeled = UnlabeledViews(weak, collect("strong"), hidden, numbers)
    return StepInput(batch, Views(collect("labeled"), labels[:, 0].to(device), unlabeled))


def load_in_process(request: StepsRequest) -> Iterator[StepInput]:
    """Loads with this project's loader for ``scale.workers=0``: threads of the training process."""
    for batch in load_batches(request.source, set_steps(request.config, request.steps + STEPS_AHEAD), 0):
        yield StepInput(batch)


def load_on_ray(request: StepsRequest) -> Iterator[StepInput]:
    """Loads with this project's loader for ``scale.workers=1``: Ray Data's tasks, which leave the training process its CPUs."""
    from pipeline.ray_cluster.connect import check_cluster
    from pipeline.stream.on_ray import build_ray_stream, read_shard_batches

    config = set_steps(request.config, request.steps + STEPS_AHEAD * compute_steps_per_block(request))
    on_one = config.model_copy(update={"scale": config.scale.model_copy(update={"workers": 1})})
    (shard,) = build_ray_stream(request.source, config, 0, check_cluster(on_one)).streaming_split(1, equal=True)
    for batch in read_shard_batches(shard, config.data.labeled_per_step, request.device, TIMEOUT_SECONDS):
        yield StepInput(batch)


def compute_steps_per_block(request: StepsRequest) -> int:
    """Computes the number of steps in a block of the stream for one train worker."""
    clips = request.source.plan.rows_per_step * request.source.plan.slots
    return -(-request.config.data.clips_per_block // clips)


def load_shuffled_by_ray(request: StepsRequest) -> Iterator[StepInput]:
    """Loads with the peer that uses Ray Data, in epochs of the unlabeled videos, or of all steps if these are fewer."""
    from pipeline.bench.peers.ray_data_loader import load_shuffled_batches

    rows, plan = request.config.data.labeled_per_step, request.source.plan
    videos = len(plan.unlabeled) / plan.unlabeled_per_labeled if plan.unlabeled_per_labeled else len(plan.labeled)
    epoch = max(1, round(videos / rows))
    for first in range(0, request.steps, epoch):
        last = min(first + epoch, request.steps)
        for columns in load_shuffled_batches(request.source, request.config, range(first * rows, last * rows)):
            yield build_step_input(columns, request.device)


def set_steps(config: Config, steps: int) -> Config:
    """Returns the configuration of a run of so many steps."""
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def take_first_steps(load: Loader, request: StepsRequest) -> Iterator[StepInput]:
    """Yields the inputs of the requested steps, then closes the loader."""
    with ExitStack() as stack:
        inputs: Any = stack.enter_context(closing(load(request)))  # type: ignore[type-var]
        for _ in range(request.steps):
            yield next(inputs)
