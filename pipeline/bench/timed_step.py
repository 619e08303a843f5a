"""Prepares a run and one training step of it, so that the step and its parts can be timed in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.bench.figures import configure_bench
from pipeline.clips.batch import Batch
from pipeline.clips.plan import compute_worker_rows
from pipeline.config import STUDENTS, Config
from pipeline.hardware import choose_device, configure_torch
from pipeline.methods import LossWeights, Views, build_method, compute_loss_weights, make_views, make_views_of_parts
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
class TimedStep:
    """A training step that can be repeated: the run's state, and the clips and views of its first step, on its device."""

    prepared: PreparedRun
    state: checkpoint.TrainState
    batch: Batch
    views: Views
    weights: LossWeights
    context: StepContext
    wrapped: Any
    """The method, or the wrapper that averages its gradients over processes."""

    @property
    def device(self) -> torch.device:
        """The device on which the step is computed."""
        return self.context.device

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.prepared.run.config

    def take(self, reuse_views: bool = False) -> Results:
        """Takes a whole training step; with ``reuse_views``, the step does not make its views but uses ``self.views``."""
        views: Callable[..., Iterator[Views]] = (lambda *_, **__: iter([self.views])) if reuse_views else make_views_of_parts
        return take_step(self.wrapped, self.state, self.batch, self.config, replace(self.context, make_views=views))

    def pass_networks(self, batch_norm: Any) -> None:
        """Does the forward and backward passes of both networks on the step's views; they end in means instead of losses.

        ``batch_norm`` is the value of ``method.batch_norm`` to be used.
        """
        self.state.method.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.train.precision):
            outputs = pass_views(self.state.students, self.views, self.weights, batch_norm)
        logits = [one.logits.float() for of_student in outputs for one in of_student.values() if one.logits.requires_grad]
        torch.stack([values.mean() for values in logits]).sum().backward()

    def make_views(self) -> None:
        """Makes the views of the step's clips, and discards them."""
        wanted = self.weights.has_unlabeled, self.weights.has_strong
        make_views(self.batch, self.config, self.config.run.seed, self.device, *wanted)


def prepare_bench_run(config: Config, folder: str, steps: int, log_every: int | None = None, workers: int = 0) -> PreparedRun:
    """Prepares a run of ``steps`` steps in ``folder``, to be timed.

    Its unlabeled videos are used from the first step on, and it has neither trackers nor time limits.

    Args:
        config: The configuration, of which the rest stays.
        folder: Where the run folder is made.
        steps: The number of steps.
        log_every: The number of steps between two lines of metrics; None leaves ``train.log_every``.
        workers: The number of train workers; with 0 the run trains in this process.
    """
    tree: dict[str, Any] = configure_bench(config, steps).model_dump()
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


def build_timed_step(prepared: PreparedRun, rows: Ints | None = None) -> TimedStep:
    """Builds the networks on this process's device, and decodes the clips of the first step (or of these ``rows``)."""
    run, config = prepared.run, prepared.run.config
    device = choose_device(config)
    if config.scale.torch_threads:
        torch.set_num_threads(config.scale.torch_threads)
    configure_torch(config.train)
    torch.manual_seed(config.run.seed)
    built = build_method(config, run.num_classes, *run.plan.sizes, file_labels=run.file_labels)
    method = apply_train_options(built, config.train).to(device)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, run.fingerprints.as_dict())
    if config.train.precision == "fp16":
        state.scaler = torch.amp.GradScaler(device.type)
    weights = compute_loss_weights(config.method, 0)
    rows = compute_worker_rows([0], run.plan.rows_per_step, 0, 1)[0] if rows is None else rows
    batch = to_batch(prepared.run.source.decode_rows(rows), pin=device.type == "cuda")
    # in training they are sent while the step before is computed, which is not part of a step
    batch = replace(batch, **{name: getattr(batch, name).to(device, non_blocking=True) for name in STUDENTS})
    views = make_views(batch, config, config.run.seed, device, weights.has_unlabeled, weights.has_strong)
    return TimedStep(prepared, state, batch, views, weights, StepContext(0, device, 1.0), method)


def free_memory() -> None:
    """Gives the GPU memory that this process no longer uses back, so that another process can have it."""
    gc.collect()  # activation checkpointing leaves cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
