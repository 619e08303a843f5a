"""Compares a training step with what it cannot do without: the passes of both networks, and the decoding of clips."""

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

from pipeline.bench.end_to_end import MIN_STEPS, bench_end_to_end
from pipeline.bench.figures import compute_ratio
from pipeline.bench.timed_step import TimedStep, build_timed_step, free_memory, prepare_bench_run
from pipeline.config import Config
from pipeline.processes.allocator import keep_freed_memory
from pipeline.progress import show_progress
from pipeline.training.checkpoints.background_writer import CheckpointWriter
from pipeline.training.monitoring.metric_log import MetricLog
from pipeline.training.monitoring.score_log import ScoreLog
from pipeline.training.monitoring.tracking import MetricSinks

CHECKPOINT_EVERY = 50
"""The number of steps between two checkpoints for which ``checkpoint_cost_ratio`` is computed."""
Times = dict[str, list[float]]
"""Seconds of each kind of work, one value from every repeat."""


def bench_step(config: Config, steps: int, repeats: int, min_steps: int = MIN_STEPS) -> dict[str, Any]:
    """Measures the parts of a training step in this process, on the GPU if there is one, and the run end to end.

    The parts are measured in turns, ``steps`` times in each of ``repeats``. Only end to end, the run has ``scale.workers``
    workers; see ``end_to_end``, which also explains ``min_steps``. Nothing is left in the run's folder.

    Returns:
        ``step_over_bare_ratio``: a step whose views were made beforehand, over the passes of both networks on the same views,
        in wall time, and on a CPU in CPU time, too (on a GPU that would be the time of the host, which waits for it).
        ``concatenated_over_separate_ratio``: one pass of all views of a student over one each of labeled, weak and strong ones.
        ``checkpoint_cost_ratio``: 50 steps with a checkpoint over 50 without.
        ``logging_cost_ratio``: steps with a line of metrics every ``train.log_every`` steps over steps without.
        Also the median milliseconds of each part.
    """
    keep_freed_memory()
    quiet = contextlib.redirect_stdout(io.StringIO())  # lines of metrics are printed too
    with quiet, tempfile.TemporaryDirectory() as folder:
        times, saved, logged, about = _measure_parts(config, folder, steps, repeats)
    free_memory()  # end to end other processes need the GPU
    whole = times["whole"]
    of_cpu = {}
    if about["device"] == "cpu":
        of_cpu["step_over_bare_cpu"] = compute_ratio("step_over_bare_cpu_ratio", times["step, CPU"], times["bare, CPU"])
    with_checkpoint = [CHECKPOINT_EVERY * step + cost for step, cost in zip(whole, saved, strict=True)]
    return {
        "step_over_bare": compute_ratio("step_over_bare_ratio", times["step"], times["bare"]),
        **of_cpu,
        "concatenated_over_separate": compute_ratio(
            "concatenated_over_separate_ratio", times["concatenated"], times["separate"]
        ),
        "views_of_step": compute_ratio("views_of_step_ratio", times["views"], whole),
        **bench_end_to_end(config, steps, repeats, min_steps),
        "checkpoint_cost": compute_ratio("checkpoint_cost_ratio", with_checkpoint, [CHECKPOINT_EVERY * step for step in whole]),
        "logging_cost": compute_ratio("logging_cost_ratio", [s + cost for s, cost in zip(whole, logged, strict=True)], whole),
        "milliseconds": {
            name: round(1000 * statistics.median(values), 2)
            for name, values in {**times, "one checkpoint": saved, "metrics, a step": logged}.items()
        },
        **about,
    }


def _measure_parts(
    config: Config, folder: str, steps: int, repeats: int
) -> tuple[Times, list[float], list[float], dict[str, Any]]:
    """Measures the seconds of each kind of work, of a checkpoint and of logging a step, and describes where that was done."""
    timed = build_timed_step(prepare_bench_run(config, folder, steps))
    times = _measure_in_turns(_list_kinds(timed), steps, repeats)
    if timed.device.type != "cpu":  # the host's seconds, which it mostly waits
        times = {name: values for name, values in times.items() if not name.endswith(", CPU")}
    saved = [_measure_checkpoint(timed, steps) for _ in range(repeats)]
    logged = [_measure_logging(timed) for _ in range(repeats)]
    about = {
        "videos_per_step": timed.batch.labels.numel(), "device": timed.device.type, "threads": torch.get_num_threads()
    }  # fmt: skip
    return times, saved, logged, about


def _list_kinds(timed: TimedStep) -> dict[str, Callable[[], Any]]:
    """Returns the kinds of work by name.

    ``step`` and ``bare`` use views that were made beforehand, ``whole`` makes them. ActNetFormer's default is ``separate``.
    """
    return {
        "step": partial(timed.take, reuse_views=True),
        "bare": partial(timed.pass_networks, timed.config.method.batch_norm),
        "concatenated": partial(timed.pass_networks, "joint"),
        "separate": partial(timed.pass_networks, "separate"),
        "views": timed.make_views,
        "whole": timed.take,
    }


def _measure_in_turns(kinds_of_work: dict[str, Callable[[], Any]], steps: int, repeats: int) -> Times:
    """Measures the median seconds over ``steps`` steps of each kind of work, for every repeat.

    The kinds take turns, so that a machine that slows down affects all of them. The CPU seconds of this process, which other
    programs hardly change, are returned as ``KIND, CPU``.
    """
    kinds = [*kinds_of_work, *(f"{name}, CPU" for name in kinds_of_work)]
    times: Times = {kind: [] for kind in kinds}
    for repeat in show_progress(range(repeats + 1), repeats + 1, "repeats"):
        singles: Times = {kind: [] for kind in kinds}
        for _ in range(steps if repeat else 1):  # the first warms up
            for name, do_work in kinds_of_work.items():
                begun = time.process_time()
                singles[name].append(_measure_seconds(do_work))
                singles[f"{name}, CPU"].append(time.process_time() - begun)
        for kind in kinds if repeat else ():
            times[kind].append(statistics.median(singles[kind]))
    return times


def _measure_seconds(do_work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    do_work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _measure_checkpoint(timed: TimedStep, steps: int) -> float:
    """Measures by how many seconds a checkpoint that is written beside ``steps`` steps, its end included, makes them longer."""

    def with_checkpoint() -> None:
        with CheckpointWriter(timed.prepared.run.folder, None, timed.config.train) as writer:
            writer.save(timed.state)
            _take_steps(timed, steps)

    without = _measure_seconds(partial(_take_steps, timed, steps))
    return _measure_seconds(with_checkpoint) - without


def _take_steps(timed: TimedStep, number: int) -> None:
    for _ in range(number):
        timed.take()


def _measure_logging(timed: TimedStep) -> float:
    """Measures the seconds of logging a step: adding its results, and its share of a line to all sinks and of the score log."""
    run, train = timed.prepared.run, timed.config.train
    results = timed.take()
    scores = ScoreLog(train.save_scores_every, run.folder, 0, 0)

    def write_line(log: MetricLog) -> None:
        for step in range(1, train.log_every + 1):
            log.add_seconds("data", 0.0)
            log.add_seconds("compute", 0.0)
            log.add(scores.keep(step, results, timed.batch), timed.batch)
        log.write(train.log_every, {})

    with MetricSinks(timed.config, run.folder, run.num_classes, lambda line: None) as sinks:
        log = MetricLog(timed.config, run.folder, run.plan, run.usable_videos, 0, 1, 0, sinks=[sinks])
        write_line(log)  # the first opens files
        return _measure_seconds(partial(write_line, log)) / train.log_every
