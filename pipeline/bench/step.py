"""A training step against what it cannot do without: the two networks' passes, and the decoding of clips."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from pipeline.bench.figures import for_bench, ratio, steady_rate
from pipeline.clips.batch import Batch
from pipeline.clips.plan import worker_rows
from pipeline.clips.stream import local_batches, to_batch
from pipeline.config import Config
from pipeline.methods import STUDENTS, LossWeights, Views, build_method, loss_weights, make_views
from pipeline.methods.passes import pass_views
from pipeline.training import checkpoint
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.equipment import equip
from pipeline.training.fit import Prepared, ends_at, fit_here, prepare
from pipeline.training.metrics import MetricLog
from pipeline.training.optim import build_optimizer
from pipeline.training.scores import ScoreLog
from pipeline.training.step import PRECISIONS, Place, Results, take_step
from pipeline.training.tracking import Outlets
from pipeline.training.writer import Writer

EVERY = 50
"""Steps between the checkpoints whose cost is told."""
AHEAD = 4
"""Steps that are decoded beyond those that are timed, so that the last ones share the cores with decoding too."""
LEAST_STEPS = 12
"""With decoding, because the first quarter is start-up and some steps are decoded in advance."""
Times = dict[str, list[float]]
"""Seconds of each kind of work, one of each from every repeat."""


@dataclass(frozen=True)
class Ready:
    """A run's state on its device, with the first step's clips and views."""

    prepared: Prepared
    state: checkpoint.TrainState
    batch: Batch
    views: Views
    weights: LossWeights
    device: torch.device

    @property
    def config(self) -> Config:
        """Of the run."""
        return self.prepared.run.config

    def step(self, made: bool = False) -> Results:
        """A whole training step; with ``made`` its views were made beforehand."""
        view: Callable[..., Views] = (lambda *_, **__: self.views) if made else make_views
        return take_step(self.state.method, self.state, self.batch, self.config, Place(0, self.device, 1.0, view))

    def bare(self, batch_norm: Any) -> None:
        """Forward and backward passes of the two networks on the step's views, which end in means instead of losses."""
        self.state.method.zero_grad(set_to_none=True)
        dtype = PRECISIONS[self.config.train.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            passed = pass_views(self.state.students, self.views, self.weights, batch_norm)
        logits = [said[0].float() for outputs in passed for said in outputs.values() if said[0].requires_grad]
        torch.stack([values.mean() for values in logits]).sum().backward()

    def views_alone(self) -> None:
        """What is made of the step's clips."""
        make_views(self.batch, self.config, self.config.run.seed, self.device, unlabeled=self.weights.use_unlabeled)


def bench_step(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """All in this process, on the GPU if there is one, in turns of ``steps`` steps; nothing is left in the run's folder.

    ``step_over_bare_ratio``: a step whose views are there, over both networks' passes on the same views, by the clock and in
    seconds of CPU. ``concatenated``: one pass of all views of a student, over one each for labeled, weak and strong ones.
    ``end_to_end_over_ideal_ratio``: steps per second with decoding, over those of ``ideal_seconds``.
    ``checkpoint_cost_ratio``: 50 steps with a checkpoint over without.
    ``logging_cost_ratio``: steps with a line of metrics every ``train.log_every`` over without.
    """
    keep_freed_memory()
    quiet = contextlib.redirect_stdout(io.StringIO())  # lines of metrics are printed too
    with quiet, tempfile.TemporaryDirectory() as folder:
        ready = _ready(_prepared(config, folder, steps))
        times = _in_turns(_work(ready), steps, repeats)
        saved = [_checkpoint_seconds(ready, steps) for _ in range(repeats)]
        logged = [_logging_seconds(ready) for _ in range(repeats)]
        actual, ideal = zip(*(_rates(ready, config, steps) for _ in range(repeats)), strict=True)
    whole = times["whole"]
    with_checkpoint = [EVERY * step + cost for step, cost in zip(whole, saved, strict=True)]
    return {
        "step_over_bare": ratio("step_over_bare_ratio", times["step"], times["bare"]),
        "step_over_bare_cpu": ratio("step_over_bare_cpu_ratio", times["step, CPU"], times["bare, CPU"]),
        "concatenated_over_separate": ratio("concatenated_over_separate_ratio", times["concatenated"], times["separate"]),
        "views_of_step": ratio("views_of_step_ratio", times["views"], whole),
        "end_to_end_over_ideal": ratio("end_to_end_over_ideal_ratio", actual, ideal),
        "checkpoint_cost": ratio("checkpoint_cost_ratio", with_checkpoint, [EVERY * step for step in whole]),
        "logging_cost": ratio("logging_cost_ratio", [s + cost for s, cost in zip(whole, logged, strict=True)], whole),
        "milliseconds": {
            name: round(1000 * statistics.median(values), 2)
            for name, values in {**times, "one checkpoint": saved, "metrics, a step": logged}.items()
        },
        "videos_per_step": ready.batch.labels.numel(),
        "device": ready.device.type,
        "threads": torch.get_num_threads(),
    }


def _prepared(config: Config, folder: str, steps: int) -> Prepared:
    """A run of its own in ``folder``, in this process, without trackers or clocks that would stop it."""
    tree: dict[str, Any] = for_bench(config, steps).model_dump()
    tree["run"] |= {"storage_path": folder, "name": "bench"}
    tree["train"] |= {"accumulation": 1, "checkpoint_every": steps, "step_timeout_seconds": None, "keep_best": 0}
    tree["tracking"] = {}
    tree["scale"] |= {"workers": 0, "min_workers": None}
    prepared = prepare(Config.model_validate(tree))
    prepared.open()
    return prepared


def _ready(prepared: Prepared) -> Ready:
    run, config = prepared.run, prepared.run.config
    device = torch.device("cuda" if config.scale.gpu is not False and torch.cuda.is_available() else "cpu")
    if config.scale.torch_threads:
        torch.set_num_threads(config.scale.torch_threads)
    torch.manual_seed(config.run.seed)
    method = equip(build_method(config, run.num_classes, *run.plan.sizes), config.train, device).to(device)
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, run.prints.as_dict())
    if config.train.precision == "fp16":
        state.scaler = torch.amp.GradScaler(device.type)
    weights = loss_weights(config.method, 0)
    batch = to_batch(prepared.source.rows(worker_rows([0], run.plan.rows_per_step, 0, 1)[0]))
    views = make_views(batch, config, config.run.seed, device, unlabeled=weights.use_unlabeled)
    return Ready(prepared, state, batch, views, weights, device)


def _work(ready: Ready) -> dict[str, Callable[[], Any]]:
    """``step`` and ``bare`` have their views, ``whole`` makes them; ``separate`` passes are what ActNetFormer's default is."""
    return {
        "step": partial(ready.step, made=True),
        "bare": partial(ready.bare, ready.config.method.batch_norm),
        "concatenated": partial(ready.bare, "joint"),
        "separate": partial(ready.bare, "separate"),
        "views": ready.views_alone,
        "whole": ready.step,
    }


def _in_turns(work: dict[str, Callable[[], Any]], steps: int, repeats: int) -> Times:
    """Medians over ``steps`` single ones, one of each kind after the other, so that a drifting machine hits all alike; also
    seconds of this process's CPU as ``KIND, CPU``, which what else the machine does hardly changes."""
    kinds = [*work, *(f"{name}, CPU" for name in work)]
    times: Times = {kind: [] for kind in kinds}
    for repeat in range(repeats + 1):
        singles: Times = {kind: [] for kind in kinds}
        for _ in range(steps if repeat else 1):  # the first warms up
            for name, do in work.items():
                begun = time.process_time()
                singles[name].append(_seconds(do))
                singles[f"{name}, CPU"].append(time.process_time() - begun)
        for kind in kinds if repeat else ():
            times[kind].append(statistics.median(singles[kind]))
    return times


def _seconds(do: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    do()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _checkpoint_seconds(ready: Ready, steps: int) -> float:
    """What ``steps`` steps take longer when a checkpoint is written beside the first of them, its end included."""

    def with_checkpoint() -> None:
        with Writer(ready.prepared.run.folder, None, ready.config.train) as writer:
            writer.save(ready.state)
            _steps(ready, steps)

    without = _seconds(partial(_steps, ready, steps))
    return _seconds(with_checkpoint) - without


def _steps(ready: Ready, number: int) -> None:
    for _ in range(number):
        ready.step()


def _logging_seconds(ready: Ready) -> float:
    """Of a step: adding its results, and its share of writing a line to all outlets and of the record of scores."""
    run, train = ready.prepared.run, ready.config.train
    results = ready.step()
    log = MetricLog(ready.config, run.folder, run.plan, run.usable_videos, 0, 1, 0)
    scores = ScoreLog(train.save_scores_every, run.folder, 0, 0)

    def line() -> None:
        for step in range(1, train.log_every + 1):
            log.spent("data", 0.0)
            log.spent("compute", 0.0)
            log.add(scores.take(step, results, ready.batch), ready.batch)
        log.write(train.log_every)

    with Outlets(ready.config, run.folder, run.num_classes, lambda line: None) as outlets:
        log.outlets.append(outlets)
        line()  # the first opens files
        return _seconds(line) / train.log_every


def _rates(ready: Ready, config: Config, steps: int) -> tuple[float, float]:
    """Steps per second of the loop with decoding, and its ideal: the seconds of decoding alone and of computing alone, half of
    which is measured before the loop and half after it."""
    number = max(LEAST_STEPS, steps)
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(config, folder, number)
        longer = ends_at(prepared.run.config, number + AHEAD)
        decoded = [time.perf_counter() for _ in islice(local_batches(prepared.source, longer, 0), number)]
        compute = _seconds(partial(_steps, ready, number // 2))
        asked: list[float] = []
        fit_here(prepared, partial(_timed, prepared, longer, asked))
        compute = (compute + _seconds(partial(_steps, ready, number // 2))) / (2 * (number // 2))
    return steady_rate([asked], 1), 1 / ideal_seconds(1 / steady_rate([decoded], 1), compute, ready.device)


def ideal_seconds(decode: float, compute: float, device: torch.device) -> float:
    """Of a step, where decoding takes ``decode`` seconds of all cores and computing ``compute`` seconds of torch's threads or
    the GPU: whichever is longer, computing or all cores' work."""
    cores = os.cpu_count() or 1
    busy = 0.0 if device.type == "cuda" else min(torch.get_num_threads(), cores) / cores
    return max(compute, decode + busy * compute)


def _timed(prepared: Prepared, config: Config, asked: list[float], first_step: int) -> Iterator[Batch]:
    """The stream's batches; notes when each is asked for, which is when the step before has ended."""
    for batch in local_batches(prepared.source, config, first_step):
        yield batch
        asked.append(time.perf_counter())
