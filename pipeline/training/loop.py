"""The training loop, the same for every worker on a cluster and for one process without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan, worker_rows
from pipeline.clips.seeds import hash64
from pipeline.config import Config
from pipeline.methods import STUDENTS, build_method, loss_weights, make_views
from pipeline.run_folder import Fingerprints, rewind
from pipeline.training import checkpoint
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.metrics import MetricLog
from pipeline.training.optim import build_optimizer, clip_gradient, set_lr
from pipeline.training.schedule import lr_factor


@dataclass(frozen=True)
class Worker:
    """One process of the run, and the few things that differ with and without Ray."""

    rank: int
    world: int
    device: torch.device
    wrap: Callable[[nn.Module], nn.Module]
    """Moves the method to the device and makes it distributed."""
    report: Callable[[dict[str, Any]], None]
    """Called by all workers together at every checkpoint with the latest metrics."""


@dataclass(frozen=True)
class Run:
    """What is to be trained, the same on all workers."""

    config: Config
    plan: Plan
    num_classes: int
    usable_videos: int
    """Videos in the plan: the base of data.max_quarantined_share."""
    prints: Fingerprints
    folder: Path


def train(run: Run, batches: Callable[[int], Iterator[Batch]], worker: Worker) -> dict[str, Any]:
    """Train from the newest checkpoint to the last step; returns the last line of metrics.

    ``batches(step)`` yields this worker's batches from that step on. What random numbers torch draws in a step (dropout)
    is seeded by (seed, step, worker), so a resumed run equals an uninterrupted one.
    """
    config = run.config
    keep_freed_memory()
    torch.manual_seed(config.run.seed)
    method = build_method(config, run.num_classes, *run.plan.sizes)
    if config.train.channels_last:
        method = method.to(memory_format=torch.channels_last_3d)
    wrapped = worker.wrap(method)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, run.prints.as_dict())
    _resume(state, run, worker)
    log = MetricLog(config, run.folder, run.plan, run.usable_videos, worker.rank, worker.world, state.step)
    stream = batches(state.step)
    while state.step < config.train.steps:
        waiting = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - waiting
        _check_rows(batch, run.plan, state.step, worker)
        results = _step(wrapped, state, batch, config, worker)
        state.step += 1
        state.next_row = state.step * run.plan.rows_per_step
        log.add(results, waited, batch)
        due = state.step % config.train.checkpoint_every == 0 or state.step == config.train.steps
        if due or state.step % config.train.log_every == 0:
            log.write(state.step)
        if due:
            _checkpoint(state, run, worker)
            worker.report({"step": state.step, **log.latest})
    return log.latest


def _step(
    wrapped: nn.Module, state: checkpoint.TrainState, batch: Batch, config: Config, worker: Worker
) -> dict[str, torch.Tensor]:
    """One optimizer step of both students."""
    torch.manual_seed(int(hash64(config.run.seed, "torch", state.step, worker.rank) >> 1))
    weights = loss_weights(config.method, state.step)
    views = make_views(batch, config, config.run.seed, worker.device, unlabeled=weights.use_unlabeled)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.train.precision]
    with torch.autocast(worker.device.type, dtype, enabled=dtype != torch.float32):
        results: dict[str, torch.Tensor] = wrapped(views, weights)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    results["loss"].backward()
    for name, optimizer in state.optimizers.items():
        section = getattr(config, name).optimizer
        set_lr(optimizer, section.lr * lr_factor(state.step, config.train))
        results[f"gradient_norm/{name}"] = clip_gradient(state.students[name], section.clip_gradient_norm)
        optimizer.step()
    return {name: value.detach() for name, value in results.items()}


def _check_rows(batch: Batch, plan: Plan, step: int, worker: Worker) -> None:
    """Every planned row is trained once, in its step, whatever dealt the batches: this is where that is made sure."""
    expected = worker_rows([step], plan.rows_per_step, worker.rank, worker.world)[0]
    came = batch.rows.tolist()
    assert came == expected.tolist(), f"step {step}: rows {came} came, {expected.tolist()} are planned"


def _resume(state: checkpoint.TrainState, run: Run, worker: Worker) -> None:
    newest, problems = checkpoint.newest(run.folder)
    if newest is not None:
        checkpoint.load(state, newest)
    if worker.rank == 0:
        for problem in problems:
            print(f"warning: skipped a damaged checkpoint: {problem}", flush=True)
        rewind(run.folder, state.step, state.next_row)
        if newest is not None:
            print(f"continuing at step {state.step} of {run.config.train.steps}, from {newest.name}", flush=True)


def _checkpoint(state: checkpoint.TrainState, run: Run, worker: Worker) -> None:
    if worker.rank == 0:
        checkpoint.save(state, run.folder)
        checkpoint.prune(run.folder, run.config.train.keep_checkpoints)
