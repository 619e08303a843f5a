"""Trials by Ray Tune, and how many of them have room at once. The only user of Ray in the studies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.config import Config, parse_config
from pipeline.errors import UserError
from pipeline.lifecycle.train_and_evaluate import advance
from pipeline.ray_cluster.connect import check_cluster, connect, is_reachable
from pipeline.run_folder.contents import lock_run
from pipeline.studies.trials import ORPHAN_SECONDS, Budget, Job, Source, print_scores
from pipeline.training.prepared_run import prepare


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
    if concurrent is None and is_reachable():
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


def run_on_tune(source: Source, like: Config, budget: Budget) -> None:
    """``run_jobs`` by Ray Tune: as many trials at once as the budget says, each in a process of its own."""
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
            print_scores(self.jobs[trial_id], result["step"], scores)
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
