"""Seconds of supervised training with each loader until the students name held-out videos right."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from dataclasses import replace
from typing import Any

from pipeline.bench.figures import ratio
from pipeline.bench.peers.candidates import OURS, start, train_step
from pipeline.bench.peers.compare import Turns, one_worker, spread_of
from pipeline.bench.peers.feed import Wanted, first_steps
from pipeline.bench.peers.requests import check_same_work
from pipeline.bench.timed_step import prepared_alone, ready_here
from pipeline.clips.source import open_source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.training.held_out import measure_accuracies


def bench_to_accuracy(config: Config, percent: float, repeats: int) -> dict[str, Any]:
    """Seconds by the clock, those of the checks included, from asking for the first views to a mean accuracy of both students
    of ``percent`` on ``evaluation.split``, looked at every ``train.checkpoint_every`` steps; at most ``train.steps`` steps.

    Repeats have the seeds ``run.seed``, ``run.seed`` + 1, ...: every loader trains the same networks on the same videos, but
    views differ between loaders, so steps do too. Raises UserError.
    """
    if not 0 < percent <= 100:
        raise UserError(f"--to-accuracy {percent:g}: a percentage above 0 and up to 100")
    config = one_worker(config.model_copy(update={"method": config.method.model_copy(update={"name": "supervised"})}))
    source, _ = open_source(config)
    check_same_work(source, config)
    videos = len(source.evaluation_rows(config.evaluation.split))
    turns = Turns(config)
    for name, repeat in turns.in_turns(repeats):
        seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": config.run.seed + repeat})})
        turns.take(name, train_until, name, seeded.model_dump_json(), percent)
    found = {name: measured.values for name, measured in turns.found.items()}
    return {
        "ours_over": {
            name: ratio("seconds_ratio", found[OURS]["seconds"], of["seconds"])
            for name, of in found.items()
            if name != OURS and all(of["reached"]) and all(found[OURS]["reached"])
        },
        "loaders": {
            name: {
                "seconds": spread_of(of["seconds"], 1),
                "seconds_of_checks": spread_of(of["checks"], 1),
                "steps": spread_of(of["steps"], 0),
                "accuracy": spread_of(of["accuracy"], 1),
                "reached": f"{sum(map(bool, of['reached']))} of {len(of['reached'])}",
            }
            for name, of in found.items()
        },
        "left_out": turns.left_out,
        "to_accuracy": percent,
        "accuracy_of": f"mean of both students on {videos} videos of split {config.evaluation.split}, a view of each",
        "most_steps": config.train.steps,
        "checked_every": config.train.checkpoint_every,
        "labeled_videos": len(source.plan.labeled),
    }


def train_until(name: str, tree: str, percent: float) -> dict[str, float]:
    """``seconds``, ``checks`` (seconds of them), ``steps``, ``accuracy`` in percent, and ``reached`` 1 or 0. Raises LeftOut."""
    config, one, _ = start(name, tree)
    steps, every = config.train.steps, config.train.checkpoint_every
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, tempfile.TemporaryDirectory(prefix="peers-") as folder:
        prepared = prepared_alone(config, folder, steps)
        ready = ready_here(prepared)
        judged = replace(prepared.source, held_out=prepared.source.evaluation_rows(config.evaluation.split))
        wanted = Wanted(prepared.source, ready.config, steps, ready.device)
        begun, checks, accuracy, step = time.perf_counter(), 0.0, 0.0, 0
        for step, fed in enumerate(first_steps(one, wanted), start=1):
            train_step(ready, fed)
            if step % every and step < steps:
                continue
            check = time.perf_counter()
            right = measure_accuracies(ready.state.method, judged, ready.config, lambda: None)
            checks += time.perf_counter() - check
            accuracy = 100 * sum(right.values()) / len(right)
            if accuracy >= percent:
                break
        seconds = time.perf_counter() - begun
    reached = float(accuracy >= percent)
    return {"seconds": seconds, "checks": checks, "steps": step, "accuracy": accuracy, "reached": reached}
