"""Runs the training loop in this process; ``on_ray`` runs the same loop on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from pipeline.clips.batch import Batch
from pipeline.errors import RunFailed
from pipeline.hardware import choose_device
from pipeline.stream.in_process import load_batches
from pipeline.training.checkpoints.background_writer import NotSaved
from pipeline.training.loop import TrainWorker, train
from pipeline.training.prepared_run import PreparedRun, limit_steps
from pipeline.training.stop_signal import StopOnSignal, make_stop_exception
from pipeline.training.watchdog import Watchdog, WorkerProgress


def fit_in_process(prepared: PreparedRun, batches: Callable[[int], Iterator[Batch]] | None = None) -> dict[str, Any]:
    """Trains in this process, without Ray, so that breakpoints work; returns the last line of metrics.

    ``batches(step)``, if given, yields other batches than those of the run's source. Raises Stopped after a signal.
    """
    config = prepared.run.config
    device = choose_device(config)
    if config.scale.torch_threads:
        torch.set_num_threads(config.scale.torch_threads)
    progress = WorkerProgress()
    with StopOnSignal() as signals, Watchdog(progress, config.train.step_timeout_seconds):
        worker = TrainWorker(
            rank=0, world=1, device=device, wrap=lambda method: method.to(device),
            find_stop_reason=lambda step: make_stop_exception(signals.number, step), progress=progress,
        )  # fmt: skip
        try:
            own_batches = partial(load_batches, prepared.run.source, limit_steps(config, prepared.run.end))
            return train(prepared.run, batches or own_batches, worker)
        except NotSaved as error:
            raise RunFailed(str(error)) from error
