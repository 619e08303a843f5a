"""The training loop, the same for every worker on a cluster and for one process without Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.profiler import record_function

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan, shares, worker_rows
from pipeline.clips.source import Source
from pipeline.config import Config
from pipeline.errors import RunFailed, UserError
from pipeline.hardware import set_switches
from pipeline.methods import STUDENTS, build_method
from pipeline.processes.allocator import keep_freed_memory
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import Fingerprints, rewind
from pipeline.stream.upload_ahead import UploadAhead
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.background_writer import Writer
from pipeline.training.held_out import accuracies
from pipeline.training.model_options import equip
from pipeline.training.monitoring.metric_log import MetricLog
from pipeline.training.monitoring.profiling import StepProfile, profiled_steps
from pipeline.training.monitoring.score_log import ScoreLog
from pipeline.training.monitoring.stopwatch import Stopwatch, time_collectives
from pipeline.training.monitoring.tracking import Outlets
from pipeline.training.optimizer import build_optimizer
from pipeline.training.step import Place, take_step
from pipeline.training.watchdog import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Worker:
    """One process of the run, and the few things that differ with and without Ray."""

    rank: int
    world: int
    device: torch.device
    wrap: Callable[[nn.Module], nn.Module]
    """Moves the method to the device and makes it distributed."""
    first: Callable[[Any], Any] = lambda value: value
    """What the first worker was given; called by all together."""
    stop: Callable[[int], Exception | None] = lambda step: None
    """Asked by all workers after each step: what to raise, on all of them in the same step, once a checkpoint is written."""
    progress: Progress = field(default_factory=Progress)
    """Of this worker, for whoever watches it."""
    publish: Callable[[Mapping[str, Any]], None] = lambda line: None
    """Called by the first worker with every line of metrics."""
    store_figures: Callable[[], Mapping[str, float]] = dict
    """The use of this node's object store, for the lines of metrics; empty without Ray."""


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
    store: str | None = None
    """Where the folder is copied to, if it lies on object storage."""
    until: int | None = None
    """Step to stop and leave a checkpoint at, for searches that judge a run on its way; None: the last one."""
    profiled: bool = False
    """Whether the first worker records some steps into ``profile.json`` of the folder."""
    source: Source | None = None
    """Of the held-out videos that ``train.keep_best`` chooses checkpoints by."""

    @property
    def end(self) -> int:
        """The step after which ``train`` returns."""
        return self.config.train.steps if self.until is None else min(self.until, self.config.train.steps)


def train(run: Run, batches: Callable[[int], Iterator[Batch]], worker: Worker) -> dict[str, Any]:
    """Train from the newest checkpoint to ``run.end``; returns the last line of metrics.

    ``batches(step)`` yields this worker's batches from that step on. What random numbers torch draws in a step (dropout)
    is seeded by (seed, step, worker), so a resumed run equals an uninterrupted one.
    """
    config = run.config
    keep_freed_memory()
    torch.manual_seed(config.run.seed)
    set_switches(config.train)
    parts = part_shares(run.plan, config, worker.world)
    method = equip(build_method(config, run.num_classes, *run.plan.sizes), config.train)
    wrapped = worker.wrap(method)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, run.prints.as_dict())
    if config.train.precision == "fp16":
        state.scaler = torch.amp.GradScaler(worker.device.type)
    watch = Stopwatch(worker.device)
    time_collectives(wrapped, watch)
    _resume(state, run, worker)
    log = MetricLog(config, run.folder, run.plan, run.usable_videos, worker.rank, worker.world, state.step)
    log.quarantined = worker.first(log.quarantined)
    log.restore(state.unwritten, worker.device)
    log.watch, log.store_figures = watch.read, worker.store_figures
    scores = ScoreLog(config.train.save_scores_every, run.folder, worker.rank, state.step)
    uploads = UploadAhead(batches(state.step), worker.device)
    place = Place(worker.rank, worker.device, worker_weight(run.plan, worker), parts=parts)
    with ExitStack() as stack:
        log.outlets += [stack.enter_context(outlets) for outlets in _open_outlets(run, worker)]
        writer = stack.enter_context(Writer(run.folder, run.store, config.train, active=worker.rank == 0))
        span = profiled_steps(config.method, state.step, run.end) if run.profiled and worker.rank == 0 else None
        profile = stack.enter_context(StepProfile(run.folder, span, worker.device))
        while state.step < run.end:
            batch = _wait_for_data(uploads.take, state.step, log, worker)
            _check_rows(batch, run.plan, state.step, worker)
            worker.progress.at(state.step, "step")
            begun = watch.mark()
            results = take_step(wrapped, state, batch, config, place)
            watch.add("compute", begun, watch.mark())
            state.step += 1
            state.next_row = state.step * run.plan.rows_per_step
            log.add(scores.take(state.step, results, batch), batch)
            if uploads.is_ahead and state.step < run.end:
                _wait_for_data(uploads.start_next, state.step, log, worker)
            with record_function("after"):
                _after_step(state, run, worker, log, scores, writer)
            profile.step(state.step)
        worker.progress.at(state.step, "checkpoint")
    return log.latest


def _wait_for_data(fetch: Callable[[], T], step: int, log: MetricLog, worker: Worker) -> T:
    worker.progress.at(step, "data")
    begun = time.perf_counter()
    with record_function("batch"):
        result = fetch()
    log.spent("data", time.perf_counter() - begun)
    return result


def _open_outlets(run: Run, worker: Worker) -> list[Outlets]:
    """Of the first worker. Raises UserError on all of them if a tracker does not answer: one alone would leave them waiting."""
    outlets, problem = [], None
    if worker.rank == 0:
        try:
            outlets.append(Outlets(run.config, run.folder, run.num_classes, worker.publish))
        except UserError as error:
            problem = str(error)
    problem = worker.first(problem)
    if problem is not None:
        raise UserError(problem)
    return outlets


def _after_step(
    state: checkpoint.TrainState, run: Run, worker: Worker, log: MetricLog, scores: ScoreLog, writer: Writer
) -> None:
    """Metrics and checkpoints that are due. Raises what ``worker.stop`` says, once a checkpoint is written."""
    train = run.config.train
    due = state.step % train.checkpoint_every == 0 or state.step == run.end
    if due or state.step % train.log_every == 0:
        log.write(state.step, _held_out(state, run, worker, log) if due else {})
        _check_finite(log.latest, state.step)
        writer.check()
    worker.progress.at(state.step, "checkpoint")
    if due:
        state.unwritten = {}
        begun = time.perf_counter()
        scores.write(state.step)  # before the checkpoint: what lies after the newest one is forgotten
        writer.save(state)
        log.spent("checkpoint", time.perf_counter() - begun)
    stop = worker.stop(state.step)
    if stop is not None:
        state.unwritten = log.unwritten()
        _check_finite(state.unwritten.get("sums", {}), state.step)
        if not due:
            scores.write(state.step)
            writer.save(state)
        writer.wait()
        raise stop


def _held_out(state: checkpoint.TrainState, run: Run, worker: Worker, log: MetricLog) -> dict[str, float]:
    """Where ``train.keep_best`` asks for it, the first worker's students on held-out videos: in the state, and for the line.

    The first worker's, because its BatchNorm statistics are the checkpoint's; the others wait for it in the next step.
    """
    if not run.config.train.keep_best or worker.rank > 0:
        return {}
    assert run.source is not None
    begun = time.perf_counter()
    found = accuracies(state.method, run.source, run.config, lambda: worker.progress.at(state.step, "checkpoint"))
    state.scores[state.step] = sum(found.values()) / len(found)
    log.spent("checkpoint", time.perf_counter() - begun)
    return {f"held_out_accuracy/{name}": accuracy for name, accuracy in found.items()}


def _check_finite(line: Mapping[str, Any], step: int) -> None:
    """Raises RunFailed before a checkpoint is made of what no step can mend: an infinite gradient breaks weights before the
    loss shows it. What the optimizer itself makes infinite is the writer's to find."""
    for name in ("loss", *(f"gradient_norm/{student}" for student in STUDENTS)):
        if not math.isfinite(line.get(name, 0.0)):
            raise RunFailed(f"the {name} is {line[name]} at step {step} (mean since the line before); {checkpoint.BROKEN}")


def part_shares(plan: Plan, config: Config, world: int) -> list[list[int]]:
    """[parts][workers]: rows of each worker in each part of a step. Raises UserError if ``train.accumulation`` gives no equal
    parts on ``scale.workers``.

    Fewer workers (elastic) have more rows each and take as many at a time as before, in more parts: their memory does not grow.
    """
    parts, workers = config.train.accumulation, max(1, config.scale.workers)
    rows = shares(plan.rows_per_step, world)
    if parts > 1:
        if plan.rows_per_step % (workers * parts):
            raise UserError(
                f"train.accumulation={parts} must divide the rows of each worker: data.labeled_per_step={plan.rows_per_step} "
                f"on {workers} workers; choose another of the three"
            )
        at_once = plan.rows_per_step // (workers * parts)
        parts = min(-(-rows[0] // at_once), rows[-1])  # all workers have as many: they meet in each part
    return [list(part) for part in zip(*(shares(own, parts) for own in rows), strict=True)]


def worker_weight(plan: Plan, worker: Worker) -> float:
    """Rows of this worker over the mean of all: with it the mean over workers, which DDP takes, is the mean over rows."""
    rows = shares(plan.rows_per_step, worker.world)
    return rows[worker.rank] * worker.world / plan.rows_per_step


def _check_rows(batch: Batch, plan: Plan, step: int, worker: Worker) -> None:
    """Every planned row is trained once, in its step, whatever dealt the batches: this is where that is made sure."""
    expected = worker_rows([step], plan.rows_per_step, worker.rank, worker.world)[0]
    came = batch.rows.tolist()
    assert came == expected.tolist(), f"step {step}: rows {came} came, {expected.tolist()} are planned"


def _resume(state: checkpoint.TrainState, run: Run, worker: Worker) -> None:
    """Load the newest whole checkpoint: the first worker says which, so that all take the same one."""
    if worker.rank == 0 and run.store is not None:
        run_store.pull_files(run.store, run.folder)
    found = checkpoint.newest(run.folder, run.store) if worker.rank == 0 else None
    newest, problems = worker.first(found)
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
