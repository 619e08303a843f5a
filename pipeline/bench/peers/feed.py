"""What loaders give a training step, and how: this project's own, and each peer's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.bench.peers.requests import Columns, MakeViews, RowViews
from pipeline.clips.batch import Batch
from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.methods import STUDENTS, UnlabeledViews, Views
from pipeline.processes.isolation import count_cores
from pipeline.stream.in_process import local_batches

SECONDS = 120.0
"""For a batch to come, from processes that run already."""


@dataclass(frozen=True)
class Fed:
    """What one step is given."""

    batch: Batch
    views: Views | None = None
    """None: the step makes them of the batch's clips, as this project's does."""


@dataclass(frozen=True)
class Wanted:
    """Steps from the first on."""

    source: VideoSource
    config: Config
    steps: int
    """A loader may go on decoding beyond them, as in the middle of a run."""
    device: torch.device


Feed = Callable[[Wanted], Iterator[Fed]]
AHEAD = 16
"""Steps that a loader may decode beyond those that are timed: more than any of them holds in advance."""


def data_loader(make: MakeViews) -> Feed:
    """A torch ``DataLoader`` with a process for each core and all else as it is by default on Linux: they are forked."""

    def feed(wanted: Wanted) -> Iterator[Fed]:
        rows, on_gpu = wanted.config.data.labeled_per_step, wanted.device.type == "cuda"
        data = RowViews(wanted.source, wanted.config, (wanted.steps + AHEAD) * rows, make)
        loader: Any = DataLoader(
            data, batch_size=rows, num_workers=count_cores(), pin_memory=on_gpu, timeout=SECONDS, multiprocessing_context="fork"
        )  # fmt: skip
        for columns in loader:
            yield fed_by(columns, wanted.device)

    return feed


def fed_by(columns: Columns, device: torch.device) -> Fed:
    """A step's views of a peer: ``row`` [B], ``videos`` and ``labels`` [B, S], ``student/kind`` [B, n, C, T, size, size]."""
    labels, videos = columns["labels"], columns["videos"]

    def there(kind: str) -> dict[str, torch.Tensor]:
        found = {name: columns[f"{name}/{kind}"].flatten(0, 1) for name in STUDENTS if f"{name}/{kind}" in columns}
        return {name: views.to(device, non_blocking=True) for name, views in found.items()}

    blank = torch.empty(*labels.shape, 0, dtype=torch.uint8)
    batch = Batch(columns["row"], videos, labels, blank, blank)
    unlabeled = None
    if weak := there("weak"):
        hidden, numbers = (column[:, 1:].flatten().to(device) for column in (labels, videos))
        unlabeled = UnlabeledViews(weak, there("strong"), hidden, numbers)
    return Fed(batch, Views(there("labeled"), labels[:, 0].to(device), unlabeled))


def in_process(wanted: Wanted) -> Iterator[Fed]:
    """This project's loader with ``scale.workers=0``: threads of the training process."""
    for batch in local_batches(wanted.source, with_steps(wanted.config, wanted.steps + AHEAD), 0):
        yield Fed(batch)


def on_ray(wanted: Wanted) -> Iterator[Fed]:
    """This project's loader with ``scale.workers=1``: Ray Data's tasks, which leave the training process its CPUs."""
    import ray.data

    from pipeline.ray_cluster.connect import check_cluster
    from pipeline.stream.on_ray import ray_stream, shard_batches

    ray.data.DataContext.get_current().enable_progress_bars = False
    config = with_steps(wanted.config, wanted.steps + AHEAD * steps_per_block(wanted))
    on_one = config.model_copy(update={"scale": config.scale.model_copy(update={"workers": 1})})
    (shard,) = ray_stream(wanted.source, config, 0, check_cluster(on_one)).streaming_split(1, equal=True)
    for batch in shard_batches(shard, config.data.labeled_per_step, wanted.device, SECONDS):
        yield Fed(batch)


def steps_per_block(wanted: Wanted) -> int:
    """Of the stream, for one train worker."""
    clips = wanted.source.plan.rows_per_step * wanted.source.plan.slots
    return -(-wanted.config.data.clips_per_block // clips)


def shuffled_by_ray(wanted: Wanted) -> Iterator[Fed]:
    """The peer of Ray Data, an epoch after the other: of the unlabeled videos, or of the steps if they are fewer."""
    from pipeline.bench.peers.ray_data_loader import shuffled_batches

    rows, plan = wanted.config.data.labeled_per_step, wanted.source.plan
    videos = len(plan.unlabeled) / plan.unlabeled_per_labeled if plan.unlabeled_per_labeled else len(plan.labeled)
    epoch = max(1, round(videos / rows))
    for first in range(0, wanted.steps, epoch):
        last = min(first + epoch, wanted.steps)
        for columns in shuffled_batches(wanted.source, wanted.config, range(first * rows, last * rows)):
            yield fed_by(columns, wanted.device)


def with_steps(config: Config, steps: int) -> Config:
    """The configuration of a run of so many steps."""
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def first_steps(feed: Feed, wanted: Wanted) -> Iterator[Fed]:
    """The steps that are wanted; then the loader is closed."""
    with ExitStack() as stack:
        fed: Any = stack.enter_context(closing(feed(wanted)))  # type: ignore[type-var]
        for _ in range(wanted.steps):
            yield next(fed)
