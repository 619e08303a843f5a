"""A run as a Ray Train TorchTrainer: who is restarted after which failure, who stops whom. The rim between Ray and the loop."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup
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
from pipeline.training.watch import Progress, StopSign, Watchdog, end_process

POLL_SECONDS = 1.0
"""Between two looks of the first worker whether the driver wants to stop."""
LOOK_STEPS, LOOK_SECONDS = 10, 2.0
"""Between two looks of all workers together, which cost a collective: SIGTERM must be seen long before scale.stop_seconds."""
RESIZE = -1
"""Where a signal's number would be: other workers are about to take over."""
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
            fit = partial(_persist, trainer.fit, lambda: ray.get(sign.last_words.remote()), prepared.run)
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
            # how often to start again is decided by _persist, which knows whether a failure repeats
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[
                _StartWatch(more["sign"], 2 * scale.start_timeout_seconds),
                _Handover(more["sign"], scale.stop_seconds),
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


def _persist(fit: Callable[[], Any], last_words: Callable[[], Mapping[int | None, str]], run: Run) -> dict[str, Any]:
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
    path = run.folder / "failures.jsonl"
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


@ray.remote(num_cpus=0)
class _Sign:
    """On the driver's node: the signal that the driver got, and why processes ended themselves."""

    def __init__(self) -> None:
        self.number = 0
        self.saved = False
        self.words: dict[int | None, str] = {}

    def stop(self, number: int) -> None:
        self.number = number

    def asked(self) -> int:
        return self.number

    def resize(self) -> None:
        self.number, self.saved = self.number or RESIZE, False

    def left(self) -> None:
        self.saved = True

    def has_left(self) -> bool:
        return self.saved

    def resized(self) -> None:
        self.number = 0 if self.number == RESIZE else self.number

    def say(self, worker: int | None, words: str) -> None:
        self.words[worker] = words

    def last_words(self) -> dict[int | None, str]:
        words, self.words = self.words, {}
        return words


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _leave(sign: Any, worker: int | None, words: str) -> None:
    """End this process, and let the driver know why. ``worker`` is None for the controller."""
    with contextlib.suppress(Exception):  # the driver's node does not answer
        ray.get(sign.say.remote(worker, words), timeout=5)
    end_process(words)


def _leave_controller(sign: Any, words: str) -> None:
    """The same, and give back what was reserved for the workers.

    Ray does that for a controller that dies only with a dashboard; otherwise the next start waits for what the last one holds.
    Ray hands the group to no callback before the workers run, but this process has no others.
    """
    for found in gc.get_objects():
        if type(found) is PlacementGroup:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(found)
    _leave(sign, None, words)


class _StartWatch(WorkerGroupCallback):  # type: ignore[misc]
    """In Ray's controller, which waits without a limit for the processes of workers: ends it when they do not start."""

    def __init__(self, sign: Any, seconds: float, end: Callable[[Any, str], None] = _leave_controller) -> None:
        self.sign, self.seconds, self.end = sign, seconds, end
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Called by Ray around the start of the processes."""
        words = (
            f"the workers did not run after {self.seconds:g} s (twice scale.start_timeout_seconds): one stands still, or the "
            "storage does not answer"
        )
        self._timer = threading.Timer(self.seconds, self.end, (self.sign, words))
        self._timer.daemon = True
        self._timer.start()
        try:
            yield
        except BaseException:
            self._timer.cancel()
            raise

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Called by Ray when all of them run the train function."""
        assert self._timer is not None
        self._timer.cancel()


class _Handover(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """In Ray's controller, which ends all workers at any moment to start more of them: they leave a checkpoint first."""

    def __init__(self, sign: Any, seconds: float) -> None:
        self.sign, self.seconds = sign, seconds
        self.running = False

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Called by Ray when all of them run the train function."""
        self.running = True

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Called by Ray before the first start too. Waits ``seconds`` at most: without the checkpoint steps are repeated."""
        if not self.running:
            return
        self.running = False
        end = time.monotonic() + self.seconds
        with contextlib.suppress(Exception):  # the driver's node does not answer
            ray.get(self.sign.resize.remote(), timeout=5)
            while time.monotonic() < end and not ray.get(self.sign.has_left.remote(), timeout=5):
                time.sleep(0.1)
            ray.get(self.sign.resized.remote(), timeout=5)


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
    config, sign = parse_config(loop_config["config"]), loop_config["sign"]
    context, progress = ray.train.get_context(), Progress()
    rank, limit = context.get_world_rank(), config.train.step_timeout_seconds
    # after the collectives' own limit, whose exception says more
    watchdog = Watchdog(progress, None if limit is None else 1.2 * limit + 5, partial(_leave, sign, rank))
    try:
        with watchdog:
            return _train_here(config, loop_config, context, progress)
    except (UserError, RunFailed) as error:  # starting again would only meet it again
        raise Final(error) from error
    except Stopped as error:
        return {"stopped": (error.number, str(error))}
    except Preempted:
        if rank == 0:
            ray.get(sign.left.remote())
        raise
    except Exception as error:
        raise StepFailed.at(progress.step, rank, platform.node(), error) from error


def _train_here(config: Config, loop_config: dict[str, Any], context: Any, progress: Progress) -> dict[str, Any]:
    run, _, _ = open_parts(config)
    run = replace(run, until=loop_config["until"], profiled=loop_config["profiled"])
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    assert isinstance(device, torch.device)
    torch.set_num_threads(config.scale.torch_threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    share = largest_share(run.plan.rows_per_step, world)

    def batches(_first_step: int) -> Iterator[Batch]:
        return shard_batches(ray.train.get_dataset_shard("train"), share, device, config.data.decode_timeout_seconds)

    def wrap(method: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(method)
        return wrapped

    if loop_config["token"]:
        check_shared(run.folder / loop_config["token"], world, config.run.storage_path)
    # said by the first worker: one that counted a node more would wait alone for the others
    stop = _Stop(loop_config["sign"], rank, world, device, several_nodes=_first(_alive_nodes() > 1))
    with stop:
        gauges = Gauges(config.run.name)
        return train(run, batches, Worker(rank, world, device, wrap, _first, stop, progress, gauges))


def _alive_nodes() -> int:
    return len([node for node in ray.nodes() if node["Alive"]])


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
    """A node is taken away soon: the state is saved, and the workers start again without it."""

    preempted = True
    """As Ray's own errors say it."""


class _Stop:
    """Asked after each step; all workers look together, so that none waits for one that has left.

    The first one says when they look next: after ``LOOK_STEPS`` steps or ``LOOK_SECONDS``, whatever comes first. One worker
    alone looks after every step.
    """

    def __init__(self, sign: Any, rank: int, world: int, device: torch.device, several_nodes: bool) -> None:
        self.sign, self.rank, self.world, self.device, self.several_nodes = sign, rank, world, device, several_nodes
        self.number = 0
        self._over = threading.Event()
        self._next = 0
        self._looked: tuple[int, float] | None = None

    def __enter__(self) -> _Stop:
        if self.rank == 0:
            threading.Thread(target=self._poll, name="stop-sign", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def __call__(self, step: int) -> Exception | None:
        if step < self._next and not (self.world == 1 and self.number):
            return None
        number, self._next = self._said_by_first(self.number, step + self._steps_to_next_look(step))
        if number == RESIZE:
            return Preempted(f"the number of workers changes; step {step} is saved")
        if number:
            return stopped(number, step)
        if self.several_nodes and ray.train.get_preemption_info() is not None:
            return Preempted(f"a node is taken away; step {step} is saved")
        return None

    def _steps_to_next_look(self, step: int) -> int:
        before, self._looked = self._looked, (step, time.monotonic())
        if before is None:
            return 1
        seconds = max(1e-6, (self._looked[1] - before[1]) / max(1, step - before[0]))
        return max(1, min(LOOK_STEPS, int(LOOK_SECONDS / seconds)))

    def _said_by_first(self, *numbers: int) -> list[int]:
        told = torch.tensor(numbers, device=self.device)
        if self.world > 1:
            dist.broadcast(told, src=0)
        return [int(number) for number in told]

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
