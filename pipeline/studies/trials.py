"""Many runs, some at once: by Ray Tune, or one after another in this process.

A trial is an ordinary run that is driven from stop to stop (a step at which it is scored). Between two stops nothing of
it is alive but its folder, so a trial can be ended there at no cost: Tune's own schedulers end a Ray Train run from
outside, and its placement group stays behind when the cluster has no dashboard. What to run next, and whether a trial
goes on, is asked of a ``Source``, which lives in the driver and keeps what it must remember outside of Tune.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.tune
import torch
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.config import Config, parse_config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.ray_cluster.connect import answers, check_cluster, connect
from pipeline.run_folder.contents import lock_run
from pipeline.studies.run import advance
from pipeline.training.fit import prepare
from pipeline.training.watch import StopSign

ORPHAN_SECONDS = 20.0
"""How long a trial waits for one of a killed driver to leave its run folder."""


@dataclass(frozen=True)
class Job:
    """A run and where to stop on its way."""

    config: Config
    """With absolute paths."""
    stops: tuple[int, ...]
    """Steps, ascending; the last one is the run's end, or as far as it is to go."""

    @property
    def name(self) -> str:
        """The run's name, unique in its study."""
        return self.config.run.name


class Source(Protocol):
    """Where trials come from and what becomes of them. Called from one thread of the driver."""

    def next(self) -> Job | None:
        """The next trial to start; None when there is none any more."""

    def scored(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """Take note of a trial's scores at a stop, repeated ones too; returns whether it goes on."""

    def ended(self, job: Job, error: str | None) -> None:
        """It came to its last stop, was told not to go on, or failed. Not called for what the budget cut off."""


@dataclass(frozen=True)
class Budget:
    """How much is used at once, and for how long."""

    concurrent: int = 1
    hours: float | None = None
    """Runs that are under way then are cut off; the same command continues them from their newest checkpoints. One that
    trains in this process makes a checkpoint first."""

    @property
    def seconds(self) -> float | None:
        """The limit for Tune."""
        return None if self.hours is None else 3600 * self.hours


def share(config: Config, concurrent: int | None) -> int:
    """Trials at once: as asked, or as many as have a CPU (and, where there are any, a GPU share) for each process.

    With ``scale.workers=0`` and one trial at once Ray is not started; else the cluster is joined. Raises UserError.
    """
    if config.scale.workers == 0 and concurrent == 1:
        return 1
    connect()
    totals = ray.cluster_resources()
    cpus = config.scale.cpus_per_worker or 1.0
    if concurrent is None:
        concurrent = _room(config, totals)
    if config.scale.workers:
        check_cluster(config, concurrent)
    elif concurrent * cpus > totals.get("CPU", 0.0) + 1e-6 and config.scale.cpus_per_worker:
        raise UserError(
            f"--concurrent {concurrent} with scale.cpus_per_worker={cpus:g} needs {concurrent * cpus:g} CPUs, the cluster "
            f"has {totals.get('CPU', 0.0):g}: lower one of them"
        )
    return concurrent


def likely_share(config: Config, concurrent: int | None) -> int:
    """What ``share`` would say, without starting Ray: on a cluster that is there, else on this machine alone."""
    if concurrent is None and answers():
        connect()
        return _room(config, ray.cluster_resources())
    return concurrent or _room(config, {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())})


def _room(config: Config, totals: Mapping[str, float]) -> int:
    """Trials at once that have a CPU, and where there are any a GPU share, for each process."""
    workers, cpus = max(1, config.scale.workers), config.scale.cpus_per_worker or 1.0
    decoder = 0.0 if config.scale.workers == 0 else config.scale.cpus_per_decoder or 1.0
    room = max(1, int(totals.get("CPU", 0.0) / (workers * cpus + decoder)))
    if totals.get("GPU") and config.scale.gpu is not False:
        room = min(room, max(1, int(totals["GPU"] / (workers * config.scale.gpus_per_worker))))
    return room


def run_jobs(source: Source, like: Config, budget: Budget) -> None:
    """Run all that ``source`` gives, within the budget. ``like`` has the resources of every trial and the study's folder.

    One at a time needs no Tune, unless runs on the cluster may have to be cut off.
    """
    if budget.concurrent == 1 and (like.scale.workers == 0 or budget.hours is None):
        _here(source, budget)
    else:
        _on_tune(source, like, budget)


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
                _say(job, step, scores)
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


def _say(job: Job, step: int, scores: Mapping[str, float]) -> None:
    accuracies = "  ".join(f"{view} {scores[view]:.1%}" for view in ("primary", "auxiliary", "mean"))
    print(f"{job.name} at step {step}/{job.config.train.steps}: {job.config.evaluation.split} top-1 {accuracies}", flush=True)


# ------------------------------------------------------------------------------------------------------------ Ray Tune


def _on_tune(source: Source, like: Config, budget: Budget) -> None:
    connect()
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its tables are of what nobody asked; every score is a line of ours
    bridge = _Bridge(source)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(_trial, _resources(like, budget.concurrent)),
        param_space={"concurrent": budget.concurrent},
        tune_config=ray.tune.TuneConfig(
            search_alg=_Asking(bridge),
            scheduler=_Deciding(bridge),
            num_samples=-1,
            max_concurrent_trials=budget.concurrent,
            time_budget_s=budget.seconds,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name=".tune",
            storage_path=str(Path(like.run.storage_path)),
            verbose=0,  # it would print every configuration whole
            # a lost process or node costs a restart, which continues from the newest checkpoint
            failure_config=ray.tune.FailureConfig(max_failures=like.train.max_failures),
        ),
    )
    tuner.fit()


def _resources(config: Config, concurrent: int) -> dict[str, float]:
    """What Tune reserves for a trial: a whole in-process run, or the driver of a TorchTrainer, which only waits."""
    if config.scale.workers:
        return {"CPU": 0.01}
    totals = ray.cluster_resources()
    cpus = config.scale.cpus_per_worker or min(1.0, int(100 * totals.get("CPU", 1.0) / concurrent) / 100)
    if config.scale.gpu and not totals.get("GPU"):
        raise UserError("scale.gpu=true needs a GPU, the cluster has none")
    gpu = totals.get("GPU") and config.scale.gpu is not False  # trials wait for one rather than do without
    return {"CPU": cpus, **({"GPU": config.scale.gpus_per_worker} if gpu else {})}


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _trial(space: dict[str, Any]) -> None:
    """One trial, in a process of Tune's."""
    config = parse_config(space["config"])
    if config.scale.workers == 0:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        torch.set_num_threads(config.scale.torch_threads or max(1, int(cpus)))
    step = 0
    try:
        with lock_run(config, ORPHAN_SECONDS):
            for step in space["stops"]:
                scores = advance(prepare(config), step, space["concurrent"])
                ray.tune.report({"step": step, "scores": scores, "last": step == space["stops"][-1]})
    except UserError as error:  # to try again would only meet it again
        ray.tune.report({"step": step, "error": str(error)})


class _Bridge:
    """Joins Tune's two hooks. Tune pickles them to be able to restore an experiment; ours restores itself."""

    def __init__(self, source: Source | None = None) -> None:
        self.source = source
        self.jobs: dict[str, Job] = {}

    def __reduce__(self) -> Any:
        return _Bridge, ()

    def next(self, trial_id: str) -> Job | None:
        assert self.source is not None
        job = self.source.next()
        if job is not None:
            self.jobs[trial_id] = job
        return job

    def scored(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the trial goes on."""
        assert self.source is not None
        if trial_id not in self.jobs or "step" not in result:
            return True
        error = result.get("error")
        # Tune has flattened what was reported
        scores = {key.removeprefix("scores/"): value for key, value in result.items() if key.startswith("scores/")}
        if error is None:
            _say(self.jobs[trial_id], result["step"], scores)
            if self.source.scored(self.jobs[trial_id], result["step"], scores) and not result["last"]:
                return True
        self.ended(trial_id, error)
        return False

    def ended(self, trial_id: str, error: str | None) -> None:
        job = self.jobs.pop(trial_id, None)
        if job is not None:
            assert self.source is not None
            self.source.ended(job, error)


class _Asking(Searcher):  # type: ignore[misc]
    """Tune's way to ask what to start next."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__(metric="step", mode="max")
        self.bridge = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        job = self.bridge.next(trial_id)
        if job is None:
            return str(Searcher.FINISHED)
        return {"name": job.name, "config": job.config.model_dump(mode="json"), "stops": list(job.stops)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: a trial's end was heard of by ``_Deciding``; what the budget cuts off ends here, too."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the source keeps its own state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Deciding(FIFOScheduler):  # type: ignore[misc]
    """Tune's way to ask whether a trial goes on."""

    _supports_buffered_results = False

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self.bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        go_on = self.bridge.scored(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if trial.should_recover():  # Tune also calls this when it starts a lost trial again
            return
        lines = [line for line in str(trial.get_error() or "it crashed").strip().splitlines() if line.strip()]
        self.bridge.ended(trial.trial_id, " | ".join(lines[-2:]))
