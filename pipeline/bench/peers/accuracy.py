"""Measures the seconds of supervised training with each loader until the students reach a given accuracy."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from dataclasses import replace
from typing import Any

from pipeline.bench.figures import compute_ratio
from pipeline.bench.peers.compare import LoaderComparison, limit_to_one_worker, summarize_values
from pipeline.bench.peers.compared_loaders import OURS, start_loader, take_training_step
from pipeline.bench.peers.requests import check_same_work
from pipeline.bench.peers.step_inputs import StepsRequest, take_first_steps
from pipeline.bench.timed_step import build_timed_step, prepare_bench_run
from pipeline.clips.source import open_source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.training.held_out import measure_accuracies


def bench_to_accuracy(config: Config, percent: float, repeats: int) -> dict[str, Any]:
    """Measures the wall time from asking for the first views until the students reach an accuracy, with each loader.

    Every ``train.checkpoint_every`` steps the mean accuracy of both students on ``evaluation.split`` is measured, until it is
    ``percent`` or ``train.steps`` steps are over. The time includes these measurements.

    Repeats have the seeds ``run.seed``, ``run.seed`` + 1, ...: every loader trains the same networks on the same videos, but
    views differ between loaders, so steps do too. Raises UserError if ``percent`` is out of range or the peers cannot do the
    same work.
    """
    if not 0 < percent <= 100:
        raise UserError(f"--to-accuracy {percent:g}: a percentage above 0 and up to 100")
    config = limit_to_one_worker(config.model_copy(update={"method": config.method.model_copy(update={"name": "supervised"})}))
    source, _ = open_source(config)
    check_same_work(source, config)
    videos = len(source.find_evaluation_rows(config.evaluation.split))
    comparison = LoaderComparison(config)
    for name, repeat in comparison.iterate_turns(repeats):
        seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": config.run.seed + repeat})})
        comparison.measure(name, train_until, name, seeded.model_dump_json(), percent)
    figures = comparison.figures
    return {
        "ours_over": {
            name: compute_ratio("seconds_ratio", figures[OURS]["seconds"], theirs["seconds"])
            for name, theirs in figures.items()
            if name != OURS and all(theirs["reached"]) and all(figures[OURS]["reached"])
        },
        "loaders": {
            name: {
                "seconds": summarize_values(theirs["seconds"], 1),
                "seconds_of_checks": summarize_values(theirs["checks"], 1),
                "steps": summarize_values(theirs["steps"], 0),
                "accuracy": summarize_values(theirs["accuracy"], 1),
                "reached": f"{sum(map(bool, theirs['reached']))} of {len(theirs['reached'])}",
            }
            for name, theirs in figures.items()
        },
        "left_out": comparison.left_out,
        "to_accuracy": percent,
        "accuracy_of": f"mean of both students on {videos} videos of split {config.evaluation.split}, a view of each",
        "most_steps": config.train.steps,
        "checked_every": config.train.checkpoint_every,
        "labeled_videos": len(source.plan.labeled),
    }


def train_until(name: str, tree: str, percent: float) -> dict[str, float]:
    """Trains with the loader of this name until the accuracy is ``percent`` or all steps are over.

    Returns:
        ``seconds``, ``checks`` (the seconds in which the accuracy was measured), ``steps``, ``accuracy`` in percent, and
        ``reached``, 1 or 0.

    Raises:
        LeftOut: the loader cannot be measured on this machine.
    """
    config, load, _ = start_loader(name, tree)
    steps, every = config.train.steps, config.train.checkpoint_every
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, tempfile.TemporaryDirectory(prefix="peers-") as folder:
        prepared = prepare_bench_run(config, folder, steps)
        timed = build_timed_step(prepared)
        checked = replace(prepared.run.source, held_out=prepared.run.source.find_evaluation_rows(config.evaluation.split))
        request = StepsRequest(prepared.run.source, timed.config, steps, timed.device)
        begun, checks, accuracy, step = time.perf_counter(), 0.0, 0.0, 0
        for step, step_input in enumerate(take_first_steps(load, request), start=1):
            take_training_step(timed, step_input)
            if step % every and step < steps:
                continue
            check = time.perf_counter()
            right = measure_accuracies(timed.state.method, checked, timed.config, lambda: None)
            checks += time.perf_counter() - check
            accuracy = 100 * sum(right.values()) / len(right)
            if accuracy >= percent:
                break
        seconds = time.perf_counter() - begun
    reached = float(accuracy >= percent)
    return {"seconds": seconds, "checks": checks, "steps": step, "accuracy": accuracy, "reached": reached}
