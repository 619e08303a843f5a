"""In Ray Train's controller: which part of the stream workers get, and what happens before they start and end."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.train import DataConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup

from pipeline.config import parse_config
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import Fingerprints
from pipeline.stream.on_ray import ray_stream
from pipeline.training.checkpoints import checkpoint
from pipeline.training.on_ray.run_control import leave
from pipeline.training.prepared_run import ends_at, open_again


def leave_controller(sign: Any, words: str) -> None:
    """``leave`` for the controller: what was reserved for the workers is given back first.

    Ray does that for a controller that dies only with a dashboard; otherwise the next start waits for what the last one holds.
    Ray hands the group to no callback before the workers run, but this process has no others.
    """
    for found in gc.get_objects():
        if type(found) is PlacementGroup:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(found)
    leave(sign, None, words)


class StartWatch(WorkerGroupCallback):  # type: ignore[misc]
    """In Ray's controller, which waits without a limit for the processes of workers: ends it when they do not start."""

    def __init__(self, sign: Any, seconds: float, end: Callable[[Any, str], None] = leave_controller) -> None:
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


class Handover(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
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


def placeholder() -> ray.data.Dataset:
    """Ray wants a dataset before it knows how many workers there will be; ``Planned`` makes the real one."""
    return ray.data.from_blocks([pa.table({"row": [0]})])


class Planned(DataConfig):  # type: ignore[misc]
    """The rest of the run from the newest checkpoint on, made for the workers there are: anew at every start of them."""

    def __init__(self, tree: dict[str, Any], prints: Fingerprints, end: int, resources: Resources) -> None:
        super().__init__(execution_options=ray.data.ExecutionOptions(preserve_order=True))
        self.tree, self.prints, self.end, self.resources = tree, prints, end, resources

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        run, source = open_again(parse_config(self.tree), self.prints)
        newest, _ = checkpoint.newest(run.folder, run.store)
        first_step = checkpoint.read_facts(newest)["step"] if newest else 0
        stream = ray_stream(source, ends_at(run.config, self.end), first_step, replace(self.resources, workers=world_size))
        parts: list[dict[str, Any]] = super().configure(
            {"train": stream}, world_size, worker_handles, worker_node_ids, **kwargs
        )
        return parts
