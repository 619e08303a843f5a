"""Trains a run with Ray Train's TorchTrainer, from the driver: what Ray is told, and after which failures it starts again."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

from pipeline.config import Config
from pipeline.errors import RunFailed, Stopped
from pipeline.files import storage
from pipeline.files.store_lock import get_held_token
from pipeline.ray_cluster.output import show_train_workers_plainly
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder import run_store
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import read_facts
from pipeline.training.loop import TrainingRun
from pipeline.training.on_ray.controller import (
    CheckpointBeforeResize,
    PlannedData,
    ShortMessages,
    StartTimeout,
    SurvivingTorchConfig,
    make_placeholder,
)
from pipeline.training.on_ray.elastic_workers import ElasticTrainer
from pipeline.training.on_ray.restarts import FAILURES, Failure, Restarts, find_root_cause, record_failures
from pipeline.training.on_ray.run_control import RunControl, on_this_node
from pipeline.training.on_ray.worker import train_worker
from pipeline.training.prepared_run import PreparedRun
from pipeline.training.stop_signal import StopOnSignal


def fit_on_ray(prepared: PreparedRun, resources: Resources) -> dict[str, Any]:
    """Trains on a cluster, and returns the last line of metrics. After a failure the workers start again at the newest
    checkpoint (see docs/recovery.md).

    Raises RunFailed with the cause if that is useless, Stopped after SIGTERM or Ctrl-C, and UserError.
    """
    config = prepared.run.config
    _set_limits(config)
    token = config.run_folder / f".seen.{uuid.uuid4().hex}"
    token.touch()
    control = RunControl.options(scheduling_strategy=on_this_node()).remote()  # type: ignore[attr-defined]
    worker_inputs = {
        "token": None if config.run_store else token.name,
        "control": control,
        "stop_step": prepared.run.stop_step,
        "is_profiled": prepared.run.is_profiled,
        "fingerprints": prepared.run.fingerprints,
        "lock": get_held_token(config.run_store),
    }
    trainer = _build_trainer(prepared.run, resources, worker_inputs)
    workers = f"{resources.workers} train worker{'s' if resources.workers > 1 else ''}"
    print(f"starting {workers}: seconds, on a busy machine minutes", flush=True)  # nothing else is said until the first steps
    try:
        with StopOnSignal() as signals, show_train_workers_plainly():
            fit = partial(fit_with_restarts, trainer.fit, partial(_take_end_reasons, control, signals), prepared.run)
            outcome: dict[str, Any] = _fit_while_listening(fit, signals, control, config.scale.stop_seconds)
    finally:
        token.unlink(missing_ok=True)
        ray.kill(control)
    if config.run_store:  # the worker that wrote it may have been on another machine
        run_store.pull_files(config.run_store, config.run_folder)
    if "stopped" in outcome:
        raise Stopped(*outcome["stopped"])
    return outcome


def _set_limits(config: Config) -> None:
    """Sets Ray Train's limits of time in the environment, which Ray hands on to the controller and the workers."""
    limit = config.train.step_timeout_seconds
    limits = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": config.scale.start_timeout_seconds}
    if limit is not None:
        # sooner than the collectives' limit: else the first to speak are those who wait for the one that stands still
        limits |= {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": 0.8 * limit, "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": limit}
    os.environ.update({name: str(value) for name, value in limits.items()})


def _build_trainer(run: TrainingRun, resources: Resources, worker_inputs: dict[str, Any]) -> ElasticTrainer:
    config = run.config
    scale, limit = config.scale, config.train.step_timeout_seconds
    tree = config.model_dump(mode="json")
    return ElasticTrainer(
        train_worker,
        resources=resources,
        train_loop_config={"config": tree, **worker_inputs},
        torch_config=SurvivingTorchConfig(timeout_s=math.ceil(limit or 10**6)),
        datasets={"train": make_placeholder},
        dataset_config=PlannedData(tree, run.fingerprints, run.end, resources),
        scaling_config=ScalingConfig(
            num_workers=resources.workers if scale.min_workers is None else (scale.min_workers, scale.workers),
            use_gpu=resources.gpu,
            resources_per_worker=resources.worker,
            label_selector=resources.train_labels or None,
            **({} if scale.min_workers is None else {"elastic_resize_monitor_interval_s": scale.resize_seconds}),
        ),
        run_config=RunConfig(
            name=config.run.name,
            storage_path=str(config.run_folder.parent),  # Ray keeps a marker there, no checkpoints
            logging_config=LoggingConfig(log_level="WARNING"),
            # how often to start again is decided by fit_with_restarts, which knows whether a failure repeats
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[
                StartTimeout(worker_inputs["control"], 2 * scale.start_timeout_seconds),
                CheckpointBeforeResize(worker_inputs["control"], scale.stop_seconds),
                ShortMessages(),
            ],
        ),
    )


def _fit_while_listening(fit: Callable[[], dict[str, Any]], signals: StopOnSignal, control: Any, seconds: float) -> Any:
    """Calls ``fit()`` in a thread and returns what it returned. Meanwhile this thread listens to signals, at which Ray would
    abort the run; the workers get ``seconds`` to save and stop."""
    done: dict[str, Any] = {}

    def call() -> None:
        try:
            done["outcome"] = fit()
        except BaseException as error:  # raised again in the main thread
            done["error"] = error

    thread = threading.Thread(target=call, name="fit", daemon=True)
    thread.start()
    deadline = None
    while thread.is_alive():
        thread.join(0.2)
        if signals.number is not None and deadline is None:
            deadline = time.monotonic() + seconds
            control.request_stop.remote(signals.number)
        if deadline is not None and time.monotonic() > deadline:
            assert signals.number is not None
            raise Stopped(
                signals.number,
                f"stopped after scale.stop_seconds={seconds:g} without a checkpoint of the last steps; the same command "
                "continues",
            )
    if "error" in done:
        raise done["error"]
    return done["outcome"]


def fit_with_restarts(
    fit: Callable[[], Any], take_end_reasons: Callable[[], Mapping[int | None, str]], run: TrainingRun
) -> dict[str, Any]:
    """Calls ``fit()``, and again after a failure of workers, of their start or of Ray's controller, unless that is useless."""
    restarts = Restarts(run.config.train.max_failures)
    while True:
        try:
            return dict(fit().return_value or {})
        except (TrainingFailedError, ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            failures = list_failures(error, take_end_reasons())
        if failures:
            _restart_or_raise(failures, restarts, run)


def _take_end_reasons(control: Any, signals: StopOnSignal) -> Any:
    """Returns the reasons of ``RunControl.take_end_reasons``. Raises Stopped if the workers failed while they were to stop."""
    if signals.number is not None:  # nothing starts again; and the cluster may be left already, which Ray would join anew
        raise Stopped(signals.number, "stopped without a checkpoint of the last steps; the same command continues")
    return ray.get(control.take_end_reasons.remote())


def list_failures(error: BaseException, end_reasons: Mapping[int | None, str]) -> list[Failure]:
    """Lists by worker what ended ``fit()``; nothing if a node was taken away, which was announced and is not a failure.

    ``end_reasons`` are those of workers (None: of the controller) that ended themselves: Ray knows only that they did.
    """
    workers: dict[int, Exception] = getattr(error, "worker_failures", {})
    if any(getattr(getattr(e, "health_check_failure", e), "preempted", False) for e in workers.values()):
        return []
    if workers:
        failures = [Failure.from_error(rank, failure) for rank, failure in sorted(workers.items())]
    else:  # before all workers were there
        failures = [Failure.from_error(None, getattr(error, "controller_failure", error))]
    return [
        replace(failure, cause=end_reasons[failure.worker]) if failure.worker in end_reasons else failure
        for failure in failures
    ]


def _restart_or_raise(failures: Sequence[Failure], restarts: Restarts, run: TrainingRun) -> None:
    """Records the failures; returns if the workers should start again, and raises the reason if that would be useless."""
    newest, _ = storage.wait_for_store(lambda: checkpoint.find_newest(run.folder, run.store))
    step = read_facts(newest)["step"] if newest else 0
    ending = restarts.decide(step, failures)
    path = run.folder / FAILURES
    record_failures(path, step, failures, ending)
    with contextlib.suppress(OSError):  # the record is not worth the run
        if run.store is not None:
            storage.upload(path, f"{run.store}/{path.name}")
    if isinstance(ending, RunFailed):
        raise RunFailed(f"{run.config.run.name}: {ending}")
    if ending is not None:
        raise ending
    cause = find_root_cause(failures)
    print(f"failed {cause.where}: {cause.cause}; starting again from step {step}", flush=True)
