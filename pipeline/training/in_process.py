"""The loop in this process; ``on_ray`` runs the same on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from pipeline.clips.batch import Batch
from pipeline.errors import RunFailed
from pipeline.hardware import own_device
from pipeline.stream.in_process import local_batches
from pipeline.training.checkpoints.background_writer import NotSaved
from pipeline.training.loop import Worker, train
from pipeline.training.prepared_run import Prepared, ends_at
from pipeline.training.stop_signal import StopSign, stopped
from pipeline.training.watchdog import Progress, Watchdog


def fit_here(prepared: Prepared, batches: Callable[[int], Iterator[Batch]] | None = None) -> dict[str, Any]:
    """The loop in this process: breakpoints work, no Ray process starts. Raises Stopped after a signal.

    ``batches(step)``, if given, yields other batches than those of the run's source.
    """
    config = prepared.run.config
    device = own_device(config)
    if config.scale.torch_threads:
        torch.set_num_threads(config.scale.torch_threads)
    progress = Progress()
    with StopSign() as sign, Watchdog(progress, config.train.step_timeout_seconds):
        worker = Worker(
            rank=0, world=1, device=device, wrap=lambda method: method.to(device),
            stop=lambda step: stopped(sign.number, step), progress=progress,
        )  # fmt: skip
        try:
            made = batches or partial(local_batches, prepared.source, ends_at(config, prepared.run.end))
            return train(prepared.run, made, worker)
        except NotSaved as error:
            raise RunFailed(str(error)) from error
