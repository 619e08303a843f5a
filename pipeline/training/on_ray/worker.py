"""One worker of a run on a cluster: the training loop between Ray and torch.distributed, and how all workers stop together."""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch import nn

from pipeline.clips.batch import Batch
from pipeline.clips.plan import compute_largest_share
from pipeline.config import Config, parse_config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.files.store_lock import adopt_lock
from pipeline.hardware import choose_device
from pipeline.processes.isolation import count_cores
from pipeline.stream.object_store import read_store_figures
from pipeline.stream.on_ray import read_shard_batches
from pipeline.training.loop import TrainWorker, train
from pipeline.training.on_ray.prometheus import Gauges
from pipeline.training.on_ray.restarts import FinalFailure, StepFailed
from pipeline.training.on_ray.run_control import RESIZE, end_with_reason
from pipeline.training.prepared_run import reopen_inputs
from pipeline.training.stop_signal import make_stop_exception
from pipeline.training.watchdog import Watchdog, WorkerProgress

POLL_SECONDS = 1.0
"""How often the first worker asks whether the driver wants to stop."""
CHECK_STEPS, CHECK_SECONDS = 10, 2.0
"""How many steps, or how long, all workers wait at most before they check together whether to stop, which costs a collective.
SIGTERM must be seen long before scale.stop_seconds."""
SHARED_FILE_SECONDS = 20.0
"""How long to wait for a file of the driver to appear on another node: NFS clients may remember for some seconds that it was
not there."""


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Trains as one worker of Ray's group; returns the last line of metrics, or ``stopped`` with signal and message.

    Raises FinalFailure, Preempted or StepFailed, which the driver understands.
    """
    for name in ("ray.train", *(name for name in logging.root.manager.loggerDict if "/ray/train/" in name)):
        logging.getLogger(name).setLevel(logging.WARNING)  # some are named by their file; each report is a line there
    config, control = parse_config(loop_config["config"]), loop_config["control"]
    context, progress = ray.train.get_context(), WorkerProgress()
    rank, limit = context.get_world_rank(), config.train.step_timeout_seconds
    # after the collectives' own limit, whose exception says more
    watchdog = Watchdog(progress, None if limit is None else 1.2 * limit + 5, partial(end_with_reason, control, rank))
    try:
        with watchdog:
            return _train_here(config, loop_config, context, progress)
    except (UserError, RunFailed) as error:  # starting again would only meet it again
        raise FinalFailure(error) from error
    except Stopped as error:
        return {"stopped": (error.number, str(error))}
    except Preempted:
        if rank == 0:
            ray.get(control.report_saved.remote())
        raise
    except Exception as error:
        failed = StepFailed.from_error(progress.step, rank, platform.node(), error)
        raise failed from failed.__cause__


def _train_here(config: Config, loop_config: dict[str, Any], context: Any, progress: WorkerProgress) -> dict[str, Any]:
    adopt_lock(config.run_store, loop_config["lock"])
    run = reopen_inputs(config, loop_config["fingerprints"])
    run = replace(run, stop_step=loop_config["stop_step"], is_profiled=loop_config["is_profiled"])
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    assert isinstance(device, torch.device)
    if config.scale.gpu and device.type == "cpu":
        choose_device(config)  # says why CUDA cannot be used on this node
    torch.set_num_threads(config.scale.torch_threads or max(1, count_cores() // context.get_local_world_size()))
    share = compute_largest_share(run.plan.rows_per_step, world)

    def batches(_first_step: int) -> Iterator[Batch]:
        return read_shard_batches(ray.train.get_dataset_shard("train"), share, device, config.data.decode_timeout_seconds)

    def wrap(method: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(method)
        return wrapped

    if loop_config["token"]:
        check_shared_folder(run.folder / loop_config["token"], world, config.run.storage_path)
    # as the first worker counts them: one that counted a node more would wait alone for the others
    stop = StopPoll(loop_config["control"], rank, world, device, several_nodes=_broadcast_from_first(_count_nodes() > 1))
    with stop:
        worker = TrainWorker(
            rank, world, device, wrap,
            broadcast=_broadcast_from_first, find_stop_reason=stop, progress=progress,
            publish=Gauges(config.run.name), read_store_figures=read_store_figures,
        )  # fmt: skip
        return train(run, batches, worker)


def _count_nodes() -> int:
    return len([node for node in ray.nodes() if node["Alive"]])


def check_shared_folder(token: Path, world: int, storage_path: str) -> None:
    """Raises UserError on all workers if one does not see the driver's file, because its node has another disk of that name."""
    deadline = time.monotonic() + SHARED_FILE_SECONDS
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
    """Ends the workers, once the state is saved, because a node is taken away soon or their number changes."""

    preempted = True
    """The name of the attribute by which Ray's own errors say so."""


class StopPoll:
    """Finds after a step whether to stop. All workers check together, so that none waits for one that has ended.

    The first worker says when they check next: after ``CHECK_STEPS`` steps or ``CHECK_SECONDS``, whichever comes first. A
    worker without others checks after every step.
    """

    def __init__(self, control: Any, rank: int, world: int, device: torch.device, several_nodes: bool) -> None:
        self.control, self.rank, self.world, self.device, self.several_nodes = control, rank, world, device, several_nodes
        self.request = 0
        self._over = threading.Event()
        self._next = 0
        self._checked: tuple[int, float] | None = None

    def __enter__(self) -> StopPoll:
        if self.rank == 0:
            threading.Thread(target=self._poll, name="stop-poll", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def __call__(self, step: int) -> Exception | None:
        """Returns what to raise after ``step``, or None to go on."""
        if step < self._next and not (self.world == 1 and self.request):
            return None
        request, self._next = self._broadcast_from_first(self.request, step + self._steps_to_next_check(step))
        if request == RESIZE:
            return Preempted(f"the number of workers changes; step {step} is saved")
        if request:
            return make_stop_exception(request, step)
        if self.several_nodes and ray.train.get_preemption_info() is not None:
            return Preempted(f"a node is taken away; step {step} is saved")
        return None

    def _steps_to_next_check(self, step: int) -> int:
        before, self._checked = self._checked, (step, time.monotonic())
        if before is None:
            return 1
        seconds = max(1e-6, (self._checked[1] - before[1]) / max(1, step - before[0]))
        return max(1, min(CHECK_STEPS, int(CHECK_SECONDS / seconds)))

    def _broadcast_from_first(self, *numbers: int) -> list[int]:
        of_first = torch.tensor(numbers, device=self.device)
        if self.world > 1:
            dist.broadcast(of_first, src=0)
        return [int(number) for number in of_first]

    def _poll(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            with contextlib.suppress(Exception):  # the driver's node is gone, or it ends: nothing to stop for
                self.request = ray.get(self.control.read_request.remote(), timeout=5)


def _broadcast_from_first(value: Any) -> Any:
    """Returns the first worker's value on all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
