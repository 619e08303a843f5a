"""The training loop, the same for every worker on a cluster and for one process without Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.profiler import record_function

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan, compute_worker_rows, divide_rows
from pipeline.clips.source import VideoSource
from pipeline.config import STUDENTS, Config
from pipeline.errors import RunFailed, UserError
from pipeline.hardware import configure_torch
from pipeline.manifest.label_file import FileLabels
from pipeline.methods import build_method
from pipeline.processes.allocator import keep_freed_memory
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import Fingerprints, read_quarantine, rewind
from pipeline.stream.upload_ahead import UploadAhead
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.background_writer import CheckpointWriter
from pipeline.training.held_out import measure_accuracies
from pipeline.training.model_options import apply_train_options
from pipeline.training.monitoring.metric_log import MetricLog
from pipeline.training.monitoring.profiling import StepProfile, choose_profiled_steps
from pipeline.training.monitoring.score_log import ScoreLog
from pipeline.training.monitoring.stopwatch import Stopwatch, time_collectives
from pipeline.training.monitoring.tracking import MetricSinks
from pipeline.training.optimizer import build_optimizer, get_learning_rate
from pipeline.training.step import StepContext, take_step
from pipeline.training.watchdog import WorkerProgress

T = TypeVar("T")


@dataclass(frozen=True)
class TrainWorker:
    """One process of the run, and the few things that differ with and without Ray."""

    rank: int
    world: int
    """Number of workers."""
    device: torch.device
    wrap: Callable[[nn.Module], nn.Module]
    """Moves the method to the device and makes it distributed."""
    broadcast: Callable[[Any], Any] = lambda value: value
    """Returns the value that the first worker gave; all workers call it together."""
    find_stop_reason: Callable[[int], Exception | None] = lambda step: None
    """Called by all workers after each step. What it returns is raised, on all workers after the same step, once a checkpoint
    is written; None: the training goes on."""
    progress: WorkerProgress = field(default_factory=WorkerProgress)
    """Says for the watchdog what this worker is doing."""
    publish: Callable[[Mapping[str, Any]], None] = lambda line: None
    """Called by the first worker with every line of metrics; on Ray it sets the gauges that Prometheus reads."""
    read_store_figures: Callable[[], Mapping[str, float]] = dict
    """Returns the use of this node's object store, for the lines of metrics; empty without Ray."""


@dataclass(frozen=True)
class TrainingRun:
    """What is to be trained, the same on all workers."""

    config: Config
    source: VideoSource
    """The run's videos, among them the held-out ones that ``train.keep_best`` chooses checkpoints by."""
    plan: Plan
    """The plan of ``source``; a check of overfitting has other labeled videos."""
    num_classes: int
    usable_videos: int
    """Number of videos in the plan, of which data.max_quarantined_share is a share."""
    fingerprints: Fingerprints
    folder: Path
    store: str | None = None
    """The URI that the folder is copied to, if the run lies on object storage."""
    stop_step: int | None = None
    """The step to stop at, with a checkpoint, for searches that evaluate unfinished runs; None trains to ``train.steps``."""
    is_profiled: bool = False
    """Whether the first worker records some steps into ``profile.json`` of the folder."""
    file_labels: FileLabels | None = None
    """The labels that ``method.file_label.file`` gives to unlabeled videos."""

    @property
    def end(self) -> int:
        """The number of steps after which ``train`` returns."""
        return self.config.train.steps if self.stop_step is None else min(self.stop_step, self.config.train.steps)


def train(run: TrainingRun, batches: Callable[[int], Iterator[Batch]], worker: TrainWorker) -> dict[str, Any]:
    """Trains from the newest checkpoint to ``run.end``, and returns the last line of metrics.

    ``batches(step)`` yields this worker's batches from that step on. The random numbers that torch draws in a step (dropout)
    are seeded by (seed, step, worker), so a resumed run equals an uninterrupted one.
    """
    part_rows = divide_step(run.plan, run.config, worker.world)  # raises before anything is built
    context = StepContext(worker.rank, worker.device, compute_worker_weight(run.plan, worker), part_rows=part_rows)
    stopwatch = Stopwatch(worker.device)
    state, wrapped = _build(run, worker, stopwatch)
    _resume(state, run, worker)
    with ExitStack() as stack:
        loop = TrainingLoop(
            run, worker, state, wrapped, context, stopwatch,
            uploads=UploadAhead(batches(state.step), worker.device),
            metrics=_open_metrics(run, worker, state, stopwatch, stack),
            scores=ScoreLog(run.config.train.save_scores_every, run.folder, worker.rank, state.step),
            writer=stack.enter_context(CheckpointWriter(run.folder, run.store, run.config.train, active=worker.rank == 0)),
        )  # fmt: skip
        profile = stack.enter_context(_open_profile(run, worker, state.step))
        while state.step < run.end:
            batch = loop.wait_for_batch()
            loop.train_on(batch)
            loop.start_next_upload()
            with record_function("after"):
                if loop.is_line_due:
                    loop.log_metrics()
                worker.progress.enter(state.step, "checkpoint")
                if loop.is_checkpoint_due:
                    loop.save()
                loop.stop_if_asked()
            profile.step(state.step)
        worker.progress.enter(state.step, "checkpoint")
    return loop.metrics.latest


def _build(run: TrainingRun, worker: TrainWorker, stopwatch: Stopwatch) -> tuple[checkpoint.TrainState, nn.Module]:
    """Builds the state of step 0 on the worker's device, and the method as it is called there (by DDP, if distributed)."""
    config = run.config
    keep_freed_memory()
    torch.manual_seed(config.run.seed)
    configure_torch(config.train)
    built = build_method(config, run.num_classes, *run.plan.sizes, file_labels=run.file_labels)
    method = apply_train_options(built, config.train)
    wrapped = worker.wrap(method)
    time_collectives(wrapped, stopwatch)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, run.fingerprints.as_dict())
    if config.train.precision == "fp16":
        state.scaler = torch.amp.GradScaler(worker.device.type)
    return state, wrapped


def _resume(state: checkpoint.TrainState, run: TrainingRun, worker: TrainWorker) -> None:
    """Loads the newest whole checkpoint, if there is one. The first worker says which, so that all load the same."""
    if worker.rank == 0 and run.store is not None:
        run_store.pull_files(run.store, run.folder)
    newest, problems = worker.broadcast(checkpoint.find_newest(run.folder, run.store) if worker.rank == 0 else None)
    if newest is not None:
        if run.store is not None:
            run_store.pull_checkpoint(run.store, newest.name, run.folder)
        checkpoint.load(state, newest)
    if worker.rank == 0:
        for problem in problems:
            print(f"warning: skipped a damaged checkpoint: {problem}", flush=True)
        rewind(run.folder, state.step, state.next_row)
        if newest is not None:
            workers = f"with {worker.world} worker{'s' * (worker.world > 1)}"
            print(f"continuing at step {state.step} of {run.config.train.steps}, from {newest.name}, {workers}", flush=True)


def _open_metrics(
    run: TrainingRun, worker: TrainWorker, state: checkpoint.TrainState, stopwatch: Stopwatch, stack: ExitStack
) -> MetricLog:
    """Opens the log of metrics and its sinks, which ``stack`` closes, to be continued from ``state.step`` on."""
    quarantined = worker.broadcast(read_quarantine(run.folder) if worker.rank == 0 else None)
    sinks = [stack.enter_context(sink) for sink in _open_sinks(run, worker)]
    metrics = MetricLog(
        run.config, run.folder, run.plan, run.usable_videos, worker.rank, worker.world, state.step,
        quarantined=quarantined, sinks=sinks, read_stopwatch=stopwatch.read, read_store_figures=worker.read_store_figures,
    )  # fmt: skip
    metrics.restore(state.unwritten, worker.device)
    return metrics


def _open_sinks(run: TrainingRun, worker: TrainWorker) -> list[MetricSinks]:
    """Opens the first worker's sinks of metrics; the others have none.

    Raises UserError on all workers if a tracker does not answer: one worker that ended alone would leave the others waiting.
    """
    sinks, problem = [], None
    if worker.rank == 0:
        try:
            sinks.append(MetricSinks(run.config, run.folder, run.num_classes, worker.publish))
        except UserError as error:
            problem = str(error)
    problem = worker.broadcast(problem)
    if problem is not None:
        raise UserError(problem)
    return sinks


def _open_profile(run: TrainingRun, worker: TrainWorker, step: int) -> StepProfile:
    is_recorded = run.is_profiled and worker.rank == 0
    steps = choose_profiled_steps(run.config.method, step, run.end) if is_recorded else None
    return StepProfile(run.folder, steps, worker.device)


@dataclass(frozen=True)
class TrainingLoop:
    """One worker's loop: what its steps work with, and its phases as methods, which ``train`` calls in their order."""

    run: TrainingRun
    worker: TrainWorker
    state: checkpoint.TrainState
    wrapped: nn.Module
    """The method as it is called: inside DDP, if there are several workers."""
    context: StepContext
    stopwatch: Stopwatch
    uploads: UploadAhead
    metrics: MetricLog
    scores: ScoreLog
    writer: CheckpointWriter

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether to save a checkpoint after this step."""
        return self.state.step % self.run.config.train.checkpoint_every == 0 or self.state.step == self.run.end

    @property
    def is_line_due(self) -> bool:
        """Whether to write a line of metrics after this step: every ``train.log_every`` steps, and before every checkpoint."""
        return self.is_checkpoint_due or self.state.step % self.run.config.train.log_every == 0

    def wait_for_batch(self) -> Batch:
        """Returns the next step's batch, on the device."""
        batch = self._time_data(self.uploads.take)
        _check_rows(batch, self.run.plan, self.state.step, self.worker)
        return batch

    def train_on(self, batch: Batch) -> None:
        """Takes one optimizer step of both students, and adds its results to the metrics and to the record of scores."""
        state = self.state
        self.worker.progress.enter(state.step, "step")
        begun = self.stopwatch.mark()
        results = take_step(self.wrapped, state, batch, self.run.config, self.context)
        self.stopwatch.add("compute", begun, self.stopwatch.mark())
        state.step += 1
        state.next_row = state.step * self.run.plan.rows_per_step
        self.metrics.add(self.scores.keep(state.step, results, batch), batch)

    def start_next_upload(self) -> None:
        """Starts to copy the next batch to a GPU, which still computes the step; on a CPU it does nothing."""
        if self.uploads.is_ahead and self.state.step < self.run.end:
            self._time_data(self.uploads.start_next)

    def log_metrics(self) -> None:
        """Writes a line of metrics. Raises RunFailed if the training has diverged, NotSaved if a checkpoint was not written."""
        rates = {f"lr/{name}": get_learning_rate(optimizer) for name, optimizer in self.state.optimizers.items()}
        self.metrics.write(self.state.step, rates | (self._measure_held_out() if self.is_checkpoint_due else {}))
        _check_finite(self.metrics.latest, self.state.step)
        self.writer.check()

    def save(self) -> None:
        """Saves a checkpoint, which a thread writes while the training goes on."""
        begun = time.perf_counter()
        self.state.unwritten = {}
        self._save_state()
        self.metrics.add_seconds("checkpoint", time.perf_counter() - begun)

    def stop_if_asked(self) -> None:
        """Raises the reason to stop, if ``worker.find_stop_reason`` gives one, once a checkpoint of this step is written."""
        reason = self.worker.find_stop_reason(self.state.step)
        if reason is None:
            return
        self.state.unwritten = self.metrics.sum_unwritten()
        _check_finite(self.state.unwritten.get("sums", {}), self.state.step)
        if not self.is_checkpoint_due:
            self._save_state()
        self.writer.wait()
        raise reason

    def _save_state(self) -> None:
        self.scores.write(self.state.step)  # before the checkpoint: what lies after the newest one is forgotten
        self.writer.save(self.state)

    def _time_data(self, fetch: Callable[[], T]) -> T:
        self.worker.progress.enter(self.state.step, "data")
        begun = time.perf_counter()
        with record_function("batch"):
            result = fetch()
        self.metrics.add_seconds("data", time.perf_counter() - begun)
        return result

    def _measure_held_out(self) -> dict[str, float]:
        """Measures the first worker's students on the held-out videos, if ``train.keep_best`` chooses checkpoints by them.

        The first worker's, because its BatchNorm statistics are the checkpoint's; the others wait for it in the next step.
        """
        run, worker, state = self.run, self.worker, self.state
        if not run.config.train.keep_best or worker.rank > 0:
            return {}
        begun = time.perf_counter()
        show_alive = partial(worker.progress.enter, state.step, "checkpoint")
        accuracies = measure_accuracies(state.method, run.source, run.config, show_alive)
        state.scores[state.step] = sum(accuracies.values()) / len(accuracies)
        self.metrics.add_seconds("checkpoint", time.perf_counter() - begun)
        return {f"held_out_accuracy/{name}": accuracy for name, accuracy in accuracies.items()}


def _check_finite(line: Mapping[str, Any], step: int) -> None:
    """Raises RunFailed before a state is saved that cannot recover: a gradient that is not finite ruins the weights before the
    loss shows it. Weights that the optimizer itself makes infinite are found by the checkpoint's writer."""
    for name in ("loss", *(f"gradient_norm/{student}" for student in STUDENTS)):
        if not math.isfinite(line.get(name, 0.0)):
            raise RunFailed(f"the {name} is {line[name]} at step {step} (mean since the line before); {checkpoint.NOT_FINITE}")


def divide_step(plan: Plan, config: Config, world: int) -> list[list[int]]:
    """Computes [parts][workers], the rows of each worker in each part of a step.

    Where an elastic run has fewer workers, each has more rows and takes as many at a time as before, in more parts, so its
    memory does not grow. Raises UserError if ``train.accumulation`` does not divide the rows of ``scale.workers`` equally.
    """
    parts, workers = config.train.accumulation, max(1, config.scale.workers)
    rows = divide_rows(plan.rows_per_step, world)
    if parts > 1:
        if plan.rows_per_step % (workers * parts):
            raise UserError(
                f"train.accumulation={parts} must divide the rows of each worker: data.labeled_per_step={plan.rows_per_step} "
                f"on {workers} workers; choose another of the three"
            )
        at_once = plan.rows_per_step // (workers * parts)
        parts = min(-(-rows[0] // at_once), rows[-1])  # all workers have as many: they meet in each part
    return [list(part) for part in zip(*(divide_rows(own, parts) for own in rows), strict=True)]


def compute_worker_weight(plan: Plan, worker: TrainWorker) -> float:
    """Divides this worker's rows by the mean of all workers': so weighted, the mean over workers that DDP takes is that over
    rows."""
    rows = divide_rows(plan.rows_per_step, worker.world)
    return rows[worker.rank] * worker.world / plan.rows_per_step


def _check_rows(batch: Batch, plan: Plan, step: int, worker: TrainWorker) -> None:
    """Asserts that the batch holds the rows that are planned for this step, so that every row is trained once."""
    expected = compute_worker_rows([step], plan.rows_per_step, worker.rank, worker.world)[0]
    rows = batch.rows.tolist()
    assert rows == expected.tolist(), f"step {step}: rows {rows} came, {expected.tolist()} are planned"
