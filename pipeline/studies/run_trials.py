"""Many runs, some at once: by Ray Tune, or one after another in this process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import Config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.lifecycle.train_and_evaluate import advance
from pipeline.run_folder.contents import lock_run
from pipeline.studies.on_tune import run_on_tune
from pipeline.studies.trials import ORPHAN_SECONDS, Budget, Job, Source, print_scores
from pipeline.training.prepared_run import prepare
from pipeline.training.stop_signal import StopSign


def run_jobs(source: Source, like: Config, budget: Budget) -> None:
    """Run all that ``source`` gives, within the budget. ``like`` has the resources of every trial and the study's folder.

    One at a time needs no Tune, unless runs on the cluster may have to be cut off.
    """
    if budget.concurrent == 1 and (like.scale.workers == 0 or budget.hours is None):
        _here(source, budget)
    else:
        run_on_tune(source, like, budget)


def _here(source: Source, budget: Budget) -> None:
    """In this process: breakpoints work. A run that the end of the budget meets stops with a checkpoint."""
    deadline = time.monotonic() + (budget.seconds or float("inf"))
    with StopSign() as sign, _signal_after(budget.seconds):
        while time.monotonic() < deadline and (job := source.next()) is not None:
            print(f"trial {job.name}", flush=True)
            try:
                _drive(source, job, sign, deadline)
            except Stopped:
                if time.monotonic() >= deadline:
                    return
                raise


def _drive(source: Source, job: Job, sign: StopSign, deadline: float) -> None:
    """Bring a trial to its last stop, or as far as it goes. Raises Stopped, and then it has not ended."""
    error = None
    try:
        with lock_run(job.config, ORPHAN_SECONDS):
            for step in job.stops:
                if sign.number or time.monotonic() >= deadline:  # came while a run was judged
                    raise Stopped(sign.number or signal.SIGTERM, "stopped between two trials; the same command continues")
                scores = advance(prepare(job.config), step)
                print_scores(job, step, scores)
                if not source.scored(job, step, scores):
                    break
    except (UserError, RunFailed) as failure:
        error = str(failure)
    source.ended(job, error)


@contextmanager
def _signal_after(seconds: float | None) -> Iterator[None]:
    """SIGTERM to this process after this time, which ``StopSign`` makes a checkpoint of."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
