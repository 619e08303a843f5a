"""Runs many trials, several at once with Ray Tune, or one after the other in this process."""

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
from pipeline.studies.trials import ORPHAN_SECONDS, Budget, Job, TrialSource, print_scores
from pipeline.training.prepared_run import prepare_run
from pipeline.training.stop_signal import StopOnSignal


def run_jobs(source: TrialSource, template: Config, budget: Budget) -> None:
    """Runs all jobs that ``source`` gives, within the budget. ``template`` has the resources of every trial and the study's
    folder.

    A single trial at a time needs no Tune, unless runs on the cluster may have to be cut off.
    """
    if budget.concurrent == 1 and (template.scale.workers == 0 or budget.hours is None):
        _run_in_process(source, budget)
    else:
        run_on_tune(source, template, budget)


def _run_in_process(source: TrialSource, budget: Budget) -> None:
    """Runs jobs in this process, where breakpoints work. A run that the end of the budget meets stops with a checkpoint."""
    deadline = time.monotonic() + (float("inf") if budget.seconds is None else budget.seconds)
    with StopOnSignal() as sign, _signal_after(budget.seconds):
        while time.monotonic() < deadline and (job := source.next_job()) is not None:
            print(f"trial {job.name}", flush=True)
            try:
                _run_job(source, job, sign, deadline)
            except Stopped:
                if time.monotonic() >= deadline:
                    return
                raise


def _run_job(source: TrialSource, job: Job, sign: StopOnSignal, deadline: float) -> None:
    """Trains a run to its last stop, or as far as the source continues it. Raises Stopped, after which the run has not
    ended."""
    error = None
    try:
        with lock_run(job.config, ORPHAN_SECONDS):
            for step in job.stops:
                if sign.number or time.monotonic() >= deadline:  # came while a run was judged
                    raise Stopped(sign.number or signal.SIGTERM, "stopped between two trials; the same command continues")
                scores = advance(prepare_run(job.config), step)
                print_scores(job, step, scores)
                if not source.report_scores(job, step, scores):
                    break
    except (UserError, RunFailed) as failure:
        error = str(failure)
    source.report_end(job, error)


@contextmanager
def _signal_after(seconds: float | None) -> Iterator[None]:
    """Sends SIGTERM to this process after this time, upon which ``StopOnSignal`` lets the run write a checkpoint."""
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
