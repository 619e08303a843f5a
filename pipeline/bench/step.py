"""A training step against what it cannot do without: the two networks' passes, and the decoding of clips."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pipeline.bench.end_to_end import LEAST_STEPS, bench_end_to_end
from pipeline.bench.figures import ratio
from pipeline.bench.timed_step import Ready, free_memory, prepared_alone, ready_here
from pipeline.config import Config
from pipeline.processes.allocator import keep_freed_memory
from pipeline.progress import progress
from pipeline.training.checkpoints.background_writer import CheckpointWriter
from pipeline.training.monitoring.metric_log import MetricLog
from pipeline.training.monitoring.score_log import ScoreLog
from pipeline.training.monitoring.tracking import MetricSinks

EVERY = 50
"""Steps between the checkpoints whose cost is told."""
Times = dict[str, list[float]]
"""Seconds of each kind of work, one of each from every repeat."""


def bench_step(config: Config, steps: int, repeats: int, least: int = LEAST_STEPS) -> dict[str, Any]:
    """In this process, on the GPU if there is one, in turns of ``steps`` steps; nothing is left in the run's folder. Only end
    to end there are ``scale.workers``, see ``end_to_end``.

    ``step_over_bare_ratio``: a step whose views are there, over both networks' passes on the same views, by the clock, and on a
    CPU in its seconds too: on a GPU those are of the host, which waits for it. ``concatenated``: one pass of all views of a
    student, over one each for labeled, weak and strong ones.
    ``checkpoint_cost_ratio``: 50 steps with a checkpoint over without.
    ``logging_cost_ratio``: steps with a line of metrics every ``train.log_every`` over without.
    """
    keep_freed_memory()
    quiet = contextlib.redirect_stdout(io.StringIO())  # lines of metrics are printed too
    with quiet, tempfile.TemporaryDirectory() as folder:
        times, saved, logged, about = _alone(config, folder, steps, repeats)
    free_memory()  # end to end other processes need the GPU
    whole = times["whole"]
    of_cpu = {}
    if about["device"] == "cpu":
        of_cpu["step_over_bare_cpu"] = ratio("step_over_bare_cpu_ratio", times["step, CPU"], times["bare, CPU"])
    with_checkpoint = [EVERY * step + cost for step, cost in zip(whole, saved, strict=True)]
    return {
        "step_over_bare": ratio("step_over_bare_ratio", times["step"], times["bare"]),
        **of_cpu,
        "concatenated_over_separate": ratio("concatenated_over_separate_ratio", times["concatenated"], times["separate"]),
        "views_of_step": ratio("views_of_step_ratio", times["views"], whole),
        **bench_end_to_end(config, steps, repeats, least),
        "checkpoint_cost": ratio("checkpoint_cost_ratio", with_checkpoint, [EVERY * step for step in whole]),
        "logging_cost": ratio("logging_cost_ratio", [s + cost for s, cost in zip(whole, logged, strict=True)], whole),
        "milliseconds": {
            name: round(1000 * statistics.median(values), 2)
            for name, values in {**times, "one checkpoint": saved, "metrics, a step": logged}.items()
        },
        **about,
    }


def _alone(
    config: Config, folder: str, steps: int, repeats: int
) -> tuple[Times, list[float], list[float], dict[str, Any]]:
    """Seconds of each kind of work, of checkpoints and of lines of metrics, and where they were measured."""
    ready = ready_here(prepared_alone(config, folder, steps))
    times = _in_turns(_work(ready), steps, repeats)
    if ready.device.type != "cpu":  # the host's seconds, which it mostly waits
        times = {name: values for name, values in times.items() if not name.endswith(", CPU")}
    saved = [_checkpoint_seconds(ready, steps) for _ in range(repeats)]
    logged = [_logging_seconds(ready) for _ in range(repeats)]
    about = {
        "videos_per_step": ready.batch.labels.numel(), "device": ready.device.type, "threads": torch.get_num_threads()
    }  # fmt: skip
    return times, saved, logged, about


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
    for repeat in progress(range(repeats + 1), repeats + 1, "repeats"):
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
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _checkpoint_seconds(ready: Ready, steps: int) -> float:
    """What ``steps`` steps take longer when a checkpoint is written beside the first of them, its end included."""

    def with_checkpoint() -> None:
        with CheckpointWriter(ready.prepared.run.folder, None, ready.config.train) as writer:
            writer.save(ready.state)
            _steps(ready, steps)

    without = _seconds(partial(_steps, ready, steps))
    return _seconds(with_checkpoint) - without


def _steps(ready: Ready, number: int) -> None:
    for _ in range(number):
        ready.step()


def _logging_seconds(ready: Ready) -> float:
    """Measures of a step: adding its results, and its share of writing a line to all sinks and of the record of scores."""
    run, train = ready.prepared.run, ready.config.train
    results = ready.step()
    scores = ScoreLog(train.save_scores_every, run.folder, 0, 0)

    def write_line(log: MetricLog) -> None:
        for step in range(1, train.log_every + 1):
            log.add_seconds("data", 0.0)
            log.add_seconds("compute", 0.0)
            log.add(scores.keep(step, results, ready.batch), ready.batch)
        log.write(train.log_every)

    with MetricSinks(ready.config, run.folder, run.num_classes, lambda line: None) as sinks:
        log = MetricLog(ready.config, run.folder, run.plan, run.usable_videos, 0, 1, 0, sinks=[sinks])
        write_line(log)  # the first opens files
        return _seconds(partial(write_line, log)) / train.log_every
