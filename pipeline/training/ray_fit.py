"""A run as a Ray Train TorchTrainer: who is restarted after which failure, who stops whom. The rim between Ray and the loop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import (
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from pipeline import run_store, storage
from pipeline.clips.batch import Batch
from pipeline.clips.plan import largest_share
from pipeline.clips.stream import ray_stream, shard_batches
from pipeline.config import Config, parse_config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.resources import Resources
from pipeline.training import checkpoint
from pipeline.training.fit import Prepared, ends_at, open_parts, stopped
from pipeline.training.loop import Run, Worker, train
from pipeline.training.prometheus import Gauges
from pipeline.training.recovery import Failure, Final, Restarts, StepFailed, record, root_cause
from pipeline.training.watch import Progress, StopSign, Watchdog

POLL_SECONDS = 1.0
"""Between two looks of the first worker whether the driver wants to stop."""
SEEN_SECONDS = 20.0
"""For a file of the driver to be seen on another node: NFS clients may remember for some seconds that it was not there."""


def fit_on_ray(prepared: Prepared, resources: Resources) -> dict[str, Any]:
    """TorchTrainer over ``ray_stream``; after a failure the workers start again at the newest checkpoint, see ``recovery``.

    Raises RunFailed with the cause when that is useless, Stopped after SIGTERM or Ctrl-C, UserError.
    """
    config = prepared.run.config
    _set_limits(config)
    token = config.run_folder / f".seen.{uuid.uuid4().hex}"
    token.touch()
    sign = _Sign.options(scheduling_strategy=_here()).remote()  # type: ignore[attr-defined]
    more = {
        "token": None if config.run_store else token.name,
        "sign": sign,
        "until": prepared.run.until,
        "profiled": prepared.run.profiled,
    }
    trainer = _trainer(prepared.run, resources, more)
    try:
        with StopSign() as signals:
            outcome = _fit(trainer, signals, sign, config.scale.stop_seconds)
    except TrainingFailedError as error:
        verdict = getattr(error, "controller_failure", None)
        if isinstance(verdict, UserError):
            raise verdict from error
        raise RunFailed(f"{config.run.name}: {verdict if isinstance(verdict, RunFailed) else _why(error)}") from error
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
        known |= {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": limit, "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": limit}
    for name, value in known.items():
        os.environ.setdefault(name, str(value))


def _trainer(run: Run, resources: Resources, more: dict[str, Any]) -> TorchTrainer:
    config = run.config
    scale, limit = config.scale, config.train.step_timeout_seconds
    tree = config.model_dump(mode="json")
    return TorchTrainer(
        _train_worker,
        train_loop_config={"config": tree, **more},
        torch_config=TorchConfig(timeout_s=math.ceil(limit or 10**6)),
        datasets={"train": _placeholder},
        dataset_config=_Planned(tree, run.end, resources),
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
            # how often to restart is decided by _Recovery, which knows whether a failure repeats
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=2),
            callbacks=[_Recovery(config)],
        ),
    )


def _fit(trainer: TorchTrainer, signals: StopSign, sign: Any, seconds: float) -> dict[str, Any]:
    """``trainer.fit()`` in a thread, so that this one can listen to signals, which Ray would answer by an abort."""
    done: dict[str, Any] = {}

    def fit() -> None:
        try:
            done["outcome"] = dict(trainer.fit().return_value or {})
        except BaseException as error:  # raised again in the main thread
            done["error"] = error

    thread = threading.Thread(target=fit, name="fit", daemon=True)
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


def _why(error: TrainingFailedError) -> str:
    """Why Ray gave up by itself: what happened before any worker was there."""
    inner = getattr(error, "controller_failure", None)
    failures = getattr(error, "worker_failures", None)
    if failures:
        return root_cause([Failure.of(rank, str(failure)) for rank, failure in failures.items()]).cause
    lines = [line.strip() for line in str(inner or error).splitlines() if line.strip()]
    return " | ".join(lines[:3])


@ray.remote(num_cpus=0)
class _Sign:
    """On the driver's node: the signal that the driver got."""

    def __init__(self) -> None:
        self.number = 0

    def stop(self, number: int) -> None:
        self.number = number

    def asked(self) -> int:
        return self.number


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class _Recovery(UserCallback):  # type: ignore[misc]
    """In Ray's controller: records every failure, and ends the run when starting again is useless."""

    def __init__(self, config: Config) -> None:
        self.folder, self.store = str(config.run_folder), config.run_store
        self.restarts = Restarts(config.train.max_failures)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if any(getattr(getattr(e, "health_check_failure", e), "preempted", False) for e in worker_exceptions.values()):
            return  # the node was taken away, which was announced: no failure
        failures = [Failure.of(rank, str(error)) for rank, error in sorted(worker_exceptions.items())]
        newest, _ = checkpoint.newest(Path(self.folder), self.store)
        step = checkpoint.read_facts(newest)["step"] if newest else 0
        verdict = self.restarts.verdict(step, failures)
        path = Path(self.folder) / "failures.jsonl"
        record(path, step, failures, verdict)
        cause = root_cause(failures)
        print(f"worker {cause.worker} failed: {cause.cause}", flush=True)
        with contextlib.suppress(OSError):  # the record is not worth the run
            if self.store is not None:
                storage.upload(path, f"{self.store}/{path.name}")
        if verdict is not None:
            raise verdict


def _placeholder() -> ray.data.Dataset:
    """Ray wants a dataset before it knows how many workers there will be; ``_Planned`` makes the real one."""
    return ray.data.from_blocks([pa.table({"row": [0]})])


class _Planned(DataConfig):  # type: ignore[misc]
    """The rest of the run from the newest checkpoint on, made for the workers there are: anew at every start of them."""

    def __init__(self, tree: dict[str, Any], end: int, resources: Resources) -> None:
        super().__init__(execution_options=ray.data.ExecutionOptions(preserve_order=True))
        self.tree, self.end, self.resources = tree, end, resources

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        run, source, _ = open_parts(parse_config(self.tree))
        newest, _ = checkpoint.newest(run.folder, run.store)
        first_step = checkpoint.read_facts(newest)["step"] if newest else 0
        stream = ray_stream(source, ends_at(run.config, self.end), first_step, replace(self.resources, workers=world_size))
        parts: list[dict[str, Any]] = super().configure(
            {"train": stream}, world_size, worker_handles, worker_node_ids, **kwargs
        )
        return parts


def _train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    for name in ("ray.train", *(name for name in logging.root.manager.loggerDict if "/ray/train/" in name)):
        logging.getLogger(name).setLevel(logging.WARNING)  # some are named by their file; each report is a line there
    run, _, _ = open_parts(parse_config(loop_config["config"]))
    run = replace(run, until=loop_config["until"], profiled=loop_config["profiled"])
    config, context = run.config, ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    assert isinstance(device, torch.device)
    torch.set_num_threads(config.scale.torch_threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    share = largest_share(run.plan.rows_per_step, world)

    def batches(_first_step: int) -> Iterator[Batch]:
        return shard_batches(ray.train.get_dataset_shard("train"), share, device, config.data.decode_timeout_seconds)

    def wrap(method: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(method)
        return wrapped

    progress = Progress()
    stop = _Stop(loop_config["sign"], rank, world, device, config.train.log_every)
    worker = Worker(rank, world, device, wrap, _first, stop, progress, Gauges(config.run.name))
    limit = config.train.step_timeout_seconds
    try:
        if loop_config["token"]:
            check_shared(run.folder / loop_config["token"], world, config.run.storage_path)
        # after the collectives' own limit, whose exception says more
        with stop, Watchdog(progress, None if limit is None else 1.2 * limit + 5):
            return train(run, batches, worker)
    except (UserError, RunFailed) as error:  # starting again would only meet it again
        raise Final.of(error) from error
    except Stopped as error:
        return {"stopped": (error.number, str(error))}
    except Preempted:
        raise
    except Exception as error:
        raise StepFailed.at(progress.step, rank, platform.node(), error) from error


def check_shared(token: Path, world: int, storage_path: str) -> None:
    """Raises UserError on all workers if one does not see the driver's file: its node has another disk of that name."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not token.is_file() and time.monotonic() < deadline:
        time.sleep(0.5)
    seen = [(platform.node(), token.is_file())]
    if world > 1:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, seen[0])
        seen = gathered
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        raise UserError(
            f"run.storage_path={storage_path} is not the same folder on all nodes: {', '.join(blind)} cannot see what the "
            "driver wrote there. Use a folder that all nodes share (NFS), or a URI of object storage (s3://bucket/runs)"
        )


class Preempted(Exception):
    """A node is taken away soon: the state is saved, and Ray starts the workers again without it."""


class _Stop:
    """Asked after each step; agreed on by all workers every ``every`` steps, so that none waits for one that has left."""

    def __init__(self, sign: Any, rank: int, world: int, device: torch.device, every: int) -> None:
        self.sign, self.rank, self.world, self.device, self.every = sign, rank, world, device, min(10, every)
        self.number = 0
        self._over = threading.Event()
        self._several_nodes = len([node for node in ray.nodes() if node["Alive"]]) > 1

    def __enter__(self) -> _Stop:
        if self.rank == 0:
            threading.Thread(target=self._poll, name="stop-sign", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def __call__(self, step: int) -> Exception | None:
        if step % self.every:
            return None
        number = self.number
        if self.world > 1:
            told = torch.tensor([number], device=self.device)
            dist.broadcast(told, src=0)
            number = int(told)
        if number:
            return stopped(number, step)
        if self._several_nodes and ray.train.get_preemption_info() is not None:
            return Preempted(f"a node is taken away; step {step} is saved")
        return None

    def _poll(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            with contextlib.suppress(Exception):  # the driver's node is gone, or it ends: nothing to stop for
                self.number = ray.get(self.sign.asked.remote(), timeout=5)


def _first(value: Any) -> Any:
    """What the first worker was given, on all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
