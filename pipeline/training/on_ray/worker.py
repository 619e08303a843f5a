"""A train worker: the loop between Ray and torch.distributed, and how all of them stop together."""

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
from pipeline.clips.plan import largest_share
from pipeline.config import Config, parse_config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.files.store_lock import adopt_lock
from pipeline.hardware import own_device
from pipeline.processes.isolation import count_cores
from pipeline.stream.object_store import read_store_figures
from pipeline.stream.on_ray import shard_batches
from pipeline.training.loop import Worker, train
from pipeline.training.on_ray.prometheus import Gauges
from pipeline.training.on_ray.restarts import Final, StepFailed
from pipeline.training.on_ray.run_control import RESIZE, leave
from pipeline.training.prepared_run import open_again
from pipeline.training.stop_signal import stopped
from pipeline.training.watchdog import Progress, Watchdog

POLL_SECONDS = 1.0
"""Between two looks of the first worker whether the driver wants to stop."""
LOOK_STEPS, LOOK_SECONDS = 10, 2.0
"""Between two looks of all workers together, which cost a collective: SIGTERM must be seen long before scale.stop_seconds."""
SEEN_SECONDS = 20.0
"""For a file of the driver to be seen on another node: NFS clients may remember for some seconds that it was not there."""


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    for name in ("ray.train", *(name for name in logging.root.manager.loggerDict if "/ray/train/" in name)):
        logging.getLogger(name).setLevel(logging.WARNING)  # some are named by their file; each report is a line there
    config, sign = parse_config(loop_config["config"]), loop_config["sign"]
    context, progress = ray.train.get_context(), Progress()
    rank, limit = context.get_world_rank(), config.train.step_timeout_seconds
    # after the collectives' own limit, whose exception says more
    watchdog = Watchdog(progress, None if limit is None else 1.2 * limit + 5, partial(leave, sign, rank))
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
    adopt_lock(config.run_store, loop_config["lock"])
    run, _ = open_again(config, loop_config["prints"])
    run = replace(run, until=loop_config["until"], profiled=loop_config["profiled"])
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    assert isinstance(device, torch.device)
    if config.scale.gpu and device.type == "cpu":
        own_device(config)  # says why CUDA cannot be used on this node
    torch.set_num_threads(config.scale.torch_threads or max(1, count_cores() // context.get_local_world_size()))
    share = largest_share(run.plan.rows_per_step, world)

    def batches(_first_step: int) -> Iterator[Batch]:
        return shard_batches(ray.train.get_dataset_shard("train"), share, device, config.data.decode_timeout_seconds)

    def wrap(method: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(method)
        return wrapped

    if loop_config["token"]:
        check_shared(run.folder / loop_config["token"], world, config.run.storage_path)
    # said by the first worker: one that counted a node more would wait alone for the others
    stop = Stop(loop_config["sign"], rank, world, device, several_nodes=_first(_alive_nodes() > 1))
    with stop:
        gauges = Gauges(config.run.name)
        return train(run, batches, Worker(rank, world, device, wrap, _first, stop, progress, gauges, read_store_figures))


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


class Stop:
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

    def __enter__(self) -> Stop:
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
