"""The state of a run and the clips of a step, to be timed in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.bench.figures import for_bench
from pipeline.clips.batch import Batch
from pipeline.clips.plan import compute_worker_rows
from pipeline.config import Config
from pipeline.hardware import choose_device, configure_torch
from pipeline.methods import STUDENTS, LossWeights, Views, build_method, compute_loss_weights, make_views, make_views_of_parts
from pipeline.methods.parts.forward import pass_views
from pipeline.methods.parts.precision import autocast
from pipeline.methods.parts.terms import Results
from pipeline.seeds import Ints
from pipeline.stream.batches import to_batch
from pipeline.training.checkpoints import checkpoint
from pipeline.training.gpu_memory import check_training
from pipeline.training.model_options import apply_train_options
from pipeline.training.optimizer import build_optimizer
from pipeline.training.prepared_run import PreparedRun, prepare_run
from pipeline.training.step import StepContext, take_step


@dataclass(frozen=True)
class Ready:
    """A run's state on its device, with the first step's clips and views there."""

    prepared: PreparedRun
    state: checkpoint.TrainState
    batch: Batch
    views: Views
    weights: LossWeights
    context: StepContext
    wrapped: Any
    """The method, or what makes it distributed."""

    @property
    def device(self) -> torch.device:
        """Where the step is computed."""
        return self.context.device

    @property
    def config(self) -> Config:
        """Of the run."""
        return self.prepared.run.config

    def step(self, made: bool = False) -> Results:
        """A whole training step; with ``made`` its views were made beforehand."""
        views: Callable[..., Iterator[Views]] = (lambda *_, **__: iter([self.views])) if made else make_views_of_parts
        return take_step(self.wrapped, self.state, self.batch, self.config, replace(self.context, make_views=views))

    def bare(self, batch_norm: Any) -> None:
        """Forward and backward passes of the two networks on the step's views, which end in means instead of losses."""
        self.state.method.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.train.precision):
            passed = pass_views(self.state.students, self.views, self.weights, batch_norm)
        logits = [one.logits.float() for outputs in passed for one in outputs.values() if one.logits.requires_grad]
        torch.stack([values.mean() for values in logits]).sum().backward()

    def views_alone(self) -> None:
        """What is made of the step's clips."""
        wanted = self.weights.use_unlabeled, self.weights.use_strong
        make_views(self.batch, self.config, self.config.run.seed, self.device, *wanted)


def prepared_alone(config: Config, folder: str, steps: int, log_every: int | None = None, workers: int = 0) -> PreparedRun:
    """A run of its own in ``folder``, of as many ``workers`` (0: in this process), without trackers or clocks that would stop
    it; its unlabeled videos are trained from the first step on."""
    tree: dict[str, Any] = for_bench(config, steps).model_dump()
    tree["run"] |= {"storage_path": folder, "name": "bench"}
    tree["train"] |= {"accumulation": 1, "checkpoint_every": steps, "step_timeout_seconds": None, "keep_best": 0}
    tree["train"] |= {} if log_every is None else {"log_every": log_every}
    tree["tracking"] = {}
    tree["scale"] |= {"workers": workers, "min_workers": None}
    prepared = prepare_run(Config.model_validate(tree))
    if workers == 0:
        check_training(prepared.run, None)
    prepared.create_folder()
    return prepared


def ready_here(prepared: PreparedRun, rows: Ints | None = None) -> Ready:
    """On this process's device, with the clips of the first step, or of these ``rows`` of it."""
    run, config = prepared.run, prepared.run.config
    device = choose_device(config)
    if config.scale.torch_threads:
        torch.set_num_threads(config.scale.torch_threads)
    configure_torch(config.train)
    torch.manual_seed(config.run.seed)
    method = apply_train_options(build_method(config, run.num_classes, *run.plan.sizes), config.train).to(device)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, run.fingerprints.as_dict())
    if config.train.precision == "fp16":
        state.scaler = torch.amp.GradScaler(device.type)
    weights = compute_loss_weights(config.method, 0)
    rows = compute_worker_rows([0], run.plan.rows_per_step, 0, 1)[0] if rows is None else rows
    batch = to_batch(prepared.source.decode_rows(rows), pin=device.type == "cuda")
    # in training they are sent while the step before is computed, which is no part of a step
    batch = replace(batch, **{name: getattr(batch, name).to(device, non_blocking=True) for name in STUDENTS})
    views = make_views(batch, config, config.run.seed, device, weights.use_unlabeled, weights.use_strong)
    return Ready(prepared, state, batch, views, weights, StepContext(0, device, 1.0), method)


def free_memory() -> None:
    """Give back to the GPU what this process has no use for any more, so that another process finds it."""
    gc.collect()  # activation checkpointing leaves cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
