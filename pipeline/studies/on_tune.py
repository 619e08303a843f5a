"""Runs trials with Ray Tune, and decides how many run at once. The only user of Ray in ``pipeline.studies``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.tune
import torch
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from pipeline.config import Config, parse_config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.files.lock_holder import get_command_line, set_command_line
from pipeline.lifecycle.train_and_evaluate import advance
from pipeline.ray_cluster.connect import check_cluster, connect, is_reachable
from pipeline.run_folder.contents import lock_run
from pipeline.studies.trials import ORPHAN_SECONDS, Budget, Job, TrialSource, print_scores
from pipeline.training.prepared_run import prepare_run
from pipeline.training.stop_signal import StopOnSignal


def choose_concurrency(config: Config, concurrent: int | None) -> int:
    """Chooses how many trials run at once: as asked, or as many as have a CPU (and a share of a GPU, if there are any) for
    each process.

    With ``scale.workers=0`` and one trial at once Ray is not started; else the cluster is joined. Raises UserError.
    """
    if config.scale.workers == 0 and concurrent == 1:
        return 1
    connect()
    totals = ray.cluster_resources()
    cpus = config.scale.cpus_per_worker or 1.0
    if concurrent is None:
        concurrent = _count_fitting_trials(config, totals)
    if config.scale.workers:
        check_cluster(config, concurrent)
    elif concurrent * cpus > totals.get("CPU", 0.0) + 1e-6 and config.scale.cpus_per_worker:
        raise UserError(
            f"--concurrent {concurrent} with scale.cpus_per_worker={cpus:g} needs {concurrent * cpus:g} CPUs, the cluster "
            f"has {totals.get('CPU', 0.0):g}: lower one of them"
        )
    return concurrent


def estimate_concurrency(config: Config, concurrent: int | None) -> int:
    """Returns what ``choose_concurrency`` would, without starting Ray: for a cluster that is running, else for this machine."""
    if concurrent is None and is_reachable():
        connect()
        return _count_fitting_trials(config, ray.cluster_resources())
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return concurrent or _count_fitting_trials(config, here)


def _count_fitting_trials(config: Config, totals: Mapping[str, float]) -> int:
    """Counts the trials that have a CPU, and a share of a GPU if there are any, for each process."""
    workers, cpus = max(1, config.scale.workers), config.scale.cpus_per_worker or 1.0
    decoder = 0.0 if config.scale.workers == 0 else config.scale.cpus_per_decoder or 1.0
    room = max(1, int(totals.get("CPU", 0.0) / (workers * cpus + decoder)))
    if totals.get("GPU") and config.scale.gpu is not False:
        room = min(room, max(1, int(totals["GPU"] / (workers * config.scale.gpus_per_worker))))
    return room


def run_on_tune(source: TrialSource, template: Config, budget: Budget) -> None:
    """Runs jobs with Ray Tune: as many trials at once as the budget says, each in a process of its own.

    Raises Stopped after SIGTERM or Ctrl-C.
    """
    connect()
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would end as if all were done, and a next round would begin
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its tables are of what nobody asked; every score is a line of ours
    bridge, sign = _TuneBridge(source), StopOnSignal("stopping; trials that run keep their newest checkpoints")
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(_run_trial, _plan_trial_resources(template, budget.concurrent)),
        param_space={"concurrent": budget.concurrent, "command": get_command_line()},
        tune_config=ray.tune.TuneConfig(
            search_alg=_SourceSearcher(bridge),
            scheduler=_SourceScheduler(bridge),
            num_samples=-1,
            max_concurrent_trials=budget.concurrent,
            time_budget_s=budget.seconds,
            trial_name_creator=_name_trial,
            trial_dirname_creator=_name_trial,
        ),
        run_config=ray.tune.RunConfig(
            name=".tune",
            storage_path=str(Path(template.run.storage_path)),
            stop=_EndAtSignal(sign),
            verbose=0,  # it would print every configuration whole
            # a lost process or node costs a restart, which continues from the newest checkpoint
            failure_config=ray.tune.FailureConfig(max_failures=template.train.max_failures),
        ),
    )
    try:
        with sign:
            tuner.fit()
    except RuntimeError as error:  # Tune restarts a trial whose process died, but ends with a traceback if Ray killed it
        cause = _find_out_of_memory(error)
        if cause is None:
            raise
        raise RunFailed(
            f"{budget.concurrent} trials at once and what else runs here need more memory than there is, and Ray killed a "
            f"trial: {cause.splitlines()[0]}. The same command continues; give it a smaller --concurrent, or run less beside it"
        ) from None
    if sign.number:
        raise Stopped(sign.number, "stopped; the same command continues each trial at its newest checkpoint")


class _EndAtSignal(Stopper):  # type: ignore[misc]
    """What Tune asks, several times a second, whether to end all trials."""

    def __init__(self, sign: StopOnSignal | None = None) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:  # Tune pickles it with the experiment, which is never restored
        return _EndAtSignal, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.sign is not None and self.sign.number is not None


def _find_out_of_memory(error: BaseException | None) -> str | None:
    """Returns the text of an OutOfMemoryError among the causes of an error, or None."""
    while error is not None and not isinstance(error, ray.exceptions.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return None if error is None else str(error)


def _plan_trial_resources(config: Config, concurrent: int) -> dict[str, float]:
    """Returns what Tune reserves for a trial: a whole in-process run, or the driver of a TorchTrainer, which only waits."""
    if config.scale.workers:
        return {"CPU": 0.01}
    totals = ray.cluster_resources()
    cpus = config.scale.cpus_per_worker or min(1.0, int(100 * totals.get("CPU", 1.0) / concurrent) / 100)
    if config.scale.gpu and not totals.get("GPU"):
        raise UserError("scale.gpu=true needs a GPU, the cluster has none")
    gpu = totals.get("GPU") and config.scale.gpu is not False  # trials wait for one rather than do without
    return {"CPU": cpus, **({"GPU": config.scale.gpus_per_worker} if gpu else {})}


def _name_trial(trial: Any) -> str:
    return str(trial.config["name"])


def _run_trial(space: dict[str, Any]) -> None:
    """Runs one trial in a process that Tune started."""
    _name_in_output(space["name"])
    set_command_line(space["command"])  # of the study: facts.json and the lock name it, not Ray's own for this process
    config = parse_config(space["config"])
    if config.scale.workers == 0:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        torch.set_num_threads(config.scale.torch_threads or max(1, int(cpus)))
    step = 0
    try:
        with lock_run(config, ORPHAN_SECONDS):
            for step in space["stops"]:
                scores = advance(prepare_run(config), step, space["concurrent"])
                ray.tune.report({"step": step, "scores": scores, "last": step == space["stops"][-1]})
    except UserError as error:  # to try again would only meet it again
        ray.tune.report({"step": step, "error": str(error)})


def _name_in_output(name: str) -> None:
    """Has Ray print this process's lines behind the trial's name, ``(NAME pid=...)``, and not behind that of a function."""
    for stream in (sys.stdout, sys.stderr):
        print(f"{LOG_PREFIX_ACTOR_NAME}{name}", file=stream, flush=True)


class _TuneBridge:
    """Connects Tune's searcher and scheduler with the source of trials.

    Tune pickles both to be able to restore an experiment, but here the source restores itself.
    """

    def __init__(self, source: TrialSource | None = None) -> None:
        self.source = source
        self.jobs: dict[str, Job] = {}

    def __reduce__(self) -> Any:
        return _TuneBridge, ()

    def next_job(self, trial_id: str) -> Job | None:
        assert self.source is not None
        job = self.source.next_job()
        if job is not None:
            self.jobs[trial_id] = job
        return job

    def report_scores(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the trial goes on."""
        assert self.source is not None
        if trial_id not in self.jobs or "step" not in result:
            return True
        error = result.get("error")
        # Tune has flattened what was reported
        scores = {key.removeprefix("scores/"): value for key, value in result.items() if key.startswith("scores/")}
        if error is None:
            print_scores(self.jobs[trial_id], result["step"], scores)
            if self.source.report_scores(self.jobs[trial_id], result["step"], scores) and not result["last"]:
                return True
        self.report_end(trial_id, error)
        return False

    def report_end(self, trial_id: str, error: str | None) -> None:
        job = self.jobs.pop(trial_id, None)
        if job is not None:
            assert self.source is not None
            self.source.report_end(job, error)


class _SourceSearcher(Searcher):  # type: ignore[misc]
    """The searcher that Tune asks what to start next."""

    def __init__(self, bridge: _TuneBridge) -> None:
        super().__init__(metric="step", mode="max")
        self.bridge = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        job = self.bridge.next_job(trial_id)
        if job is None:
            return str(Searcher.FINISHED)
        return {"name": job.name, "config": job.config.model_dump(mode="json"), "stops": list(job.stops)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Does nothing: ``_SourceScheduler`` hears of a trial's end, and this is also called for what the budget cuts off."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the source saves its own state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the source restores its own state."""


class _SourceScheduler(FIFOScheduler):  # type: ignore[misc]
    """The scheduler that Tune asks whether a trial continues."""

    _supports_buffered_results = False

    def __init__(self, bridge: _TuneBridge) -> None:
        super().__init__()
        self.bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        go_on = self.bridge.report_scores(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if trial.should_recover():  # Tune also calls this when it starts a lost trial again
            return
        lines = [line for line in str(trial.get_error() or "it crashed").strip().splitlines() if line.strip()]
        self.bridge.report_end(trial.trial_id, " | ".join(lines[-2:]))
