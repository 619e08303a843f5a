"""A run as a Ray Train TorchTrainer, from the driver: what Ray is told, and who is restarted after which failure."""

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
from ray.train.torch import TorchTrainer

from pipeline.config import Config
from pipeline.errors import RunFailed, Stopped
from pipeline.files import storage
from pipeline.files.store_lock import get_held_token
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder import run_store
from pipeline.training.checkpoints import checkpoint
from pipeline.training.loop import Run
from pipeline.training.on_ray.backend import Torch
from pipeline.training.on_ray.controller import Handover, Planned, StartWatch, placeholder
from pipeline.training.on_ray.restarts import FAILURES, Failure, Restarts, record, root_cause
from pipeline.training.on_ray.run_control import Sign, here
from pipeline.training.on_ray.worker import train_worker
from pipeline.training.prepared_run import Prepared
from pipeline.training.stop_signal import StopSign


def fit_on_ray(prepared: Prepared, resources: Resources) -> dict[str, Any]:
    """TorchTrainer over ``ray_stream``; after a failure the workers start again at the newest checkpoint, see ``recovery``.

    Raises RunFailed with the cause when that is useless, Stopped after SIGTERM or Ctrl-C, UserError.
    """
    config = prepared.run.config
    _set_limits(config)
    token = config.run_folder / f".seen.{uuid.uuid4().hex}"
    token.touch()
    sign = Sign.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
    more = {
        "token": None if config.run_store else token.name,
        "sign": sign,
        "until": prepared.run.until,
        "profiled": prepared.run.profiled,
        "prints": prepared.run.prints,
        "lock": get_held_token(config.run_store),
    }
    trainer = _trainer(prepared.run, resources, more)
    try:
        with StopSign() as signals:
            fit = partial(persist, trainer.fit, lambda: ray.get(sign.last_words.remote()), prepared.run)
            outcome = _listen(fit, signals, sign, config.scale.stop_seconds)
    finally:
        token.unlink(missing_ok=True)
        ray.kill(sign)
    if config.run_store:  # the worker that wrote it may have been on another machine
        run_store.pull_files(config.run_store, config.run_folder)
    if "stopped" in outcome:
        raise Stopped(*outcome["stopped"])
    return outcome


def _set_limits(config: Config) -> None:
    """Ray Train reads its limits from the environment, which it hands on to the controller and the workers."""
    limit = config.train.step_timeout_seconds
    known = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": config.scale.start_timeout_seconds}
    if limit is not None:
        # sooner than the collectives' limit: else the first to speak are those who wait for the one that stands still
        known |= {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": 0.8 * limit, "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": limit}
    os.environ.update({name: str(value) for name, value in known.items()})


def _trainer(run: Run, resources: Resources, more: dict[str, Any]) -> TorchTrainer:
    config = run.config
    scale, limit = config.scale, config.train.step_timeout_seconds
    tree = config.model_dump(mode="json")
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": tree, **more},
        torch_config=Torch(timeout_s=math.ceil(limit or 10**6)),
        datasets={"train": placeholder},
        dataset_config=Planned(tree, run.prints, run.end, resources),
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
            # how often to start again is decided by persist, which knows whether a failure repeats
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[
                StartWatch(more["sign"], 2 * scale.start_timeout_seconds),
                Handover(more["sign"], scale.stop_seconds),
            ],
        ),
    )


def _listen(fit: Callable[[], dict[str, Any]], signals: StopSign, sign: Any, seconds: float) -> dict[str, Any]:
    """``fit()`` in a thread, so that this one can listen to signals, which Ray would answer by an abort."""
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
            sign.stop.remote(signals.number)
        if deadline is not None and time.monotonic() > deadline:
            assert signals.number is not None
            raise Stopped(
                signals.number,
                f"stopped after scale.stop_seconds={seconds:g} without a checkpoint of the last steps; the same command "
                "continues",
            )
    if "error" in done:
        raise done["error"]
    outcome: dict[str, Any] = done["outcome"]
    return outcome


def persist(fit: Callable[[], Any], last_words: Callable[[], Mapping[int | None, str]], run: Run) -> dict[str, Any]:
    """``fit()``, again after a failure of workers, of their start or of Ray's controller, unless that would be useless."""
    restarts = Restarts(run.config.train.max_failures)
    while True:
        try:
            return dict(fit().return_value or {})
        except (TrainingFailedError, ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            failures = failures_of(error, last_words())
        if failures:
            _answer(failures, restarts, run)


def failures_of(error: BaseException, last_words: Mapping[int | None, str]) -> list[Failure]:
    """What ended ``fit()``, by worker; nothing if a node was taken away, which was announced and is no failure.

    ``last_words`` are those of workers (None: of the controller) that ended themselves: all that Ray knows is that they did.
    """
    workers: dict[int, Exception] = getattr(error, "worker_failures", {})
    if any(getattr(getattr(e, "health_check_failure", e), "preempted", False) for e in workers.values()):
        return []
    if workers:
        found = [Failure.of(rank, failure) for rank, failure in sorted(workers.items())]
    else:  # before all workers were there
        found = [Failure.of(None, getattr(error, "controller_failure", error))]
    return [replace(one, cause=last_words[one.worker]) if one.worker in last_words else one for one in found]


def _answer(failures: Sequence[Failure], restarts: Restarts, run: Run) -> None:
    """Records the failures; returns if it is worth to start again and raises the reason if it is not."""
    newest, _ = checkpoint.newest(run.folder, run.store)
    step = checkpoint.read_facts(newest)["step"] if newest else 0
    verdict = restarts.verdict(step, failures)
    path = run.folder / FAILURES
    record(path, step, failures, verdict)
    with contextlib.suppress(OSError):  # the record is not worth the run
        if run.store is not None:
            storage.upload(path, f"{run.store}/{path.name}")
    if isinstance(verdict, RunFailed):
        raise RunFailed(f"{run.config.run.name}: {verdict}")
    if verdict is not None:
        raise verdict
    cause = root_cause(failures)
    print(f"failed {cause.where}: {cause.cause}; starting again from step {step}", flush=True)
