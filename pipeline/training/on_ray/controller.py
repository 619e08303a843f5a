"""What runs in Ray Train's controller: it makes the workers' stream, and steps in when workers start and end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray._private.state import state as ray_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train import DataConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client
from ray.util.placement_group import PlacementGroup

from pipeline.config import parse_config
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import Fingerprints
from pipeline.stream.on_ray import build_ray_stream
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import read_facts
from pipeline.training.on_ray.run_control import end_with_reason
from pipeline.training.prepared_run import limit_steps, reopen_inputs


def end_controller(control: Any, reason: str) -> None:
    """Ends the controller by ``end_with_reason``, after it has given back what was reserved for the workers.

    Ray does that for a controller that dies only where it has a dashboard; elsewhere the next start would wait for what this
    one holds.
    """
    with contextlib.suppress(Exception):
        remove_own_placement_groups()
    end_with_reason(control, None, reason)


def remove_own_placement_groups() -> None:
    """Removes the placement groups that this actor made.

    Ray 2.60 hands the workers' group to no callback before they run. The cluster's records name the actor that made a group,
    which ``ray.util.placement_group_table`` leaves out, and ``ray.util.state`` needs a dashboard; so they are read here.
    """
    own = bytes.fromhex(ray.get_runtime_context().get_actor_id())
    for record in ray_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.creator_actor_id == own:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


class StartTimeout(WorkerGroupCallback):  # type: ignore[misc]
    """Ends the controller if the workers have not started after ``seconds``; Ray itself waits without a limit."""

    def __init__(self, control: Any, seconds: float, end: Callable[[Any, str], None] = end_controller) -> None:
        self.control, self.seconds, self.end = control, seconds, end
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Starts the timer; Ray calls it around the start of the processes."""
        reason = (
            f"the workers did not run after {self.seconds:g} s (twice scale.start_timeout_seconds, which a busy machine needs "
            "more of): one stands still, or the storage does not answer"
        )
        self._timer = threading.Timer(self.seconds, self.end, (self.control, reason))
        self._timer.daemon = True
        self._timer.start()
        try:
            yield
        except BaseException:
            self._timer.cancel()
            raise

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Stops the timer; Ray calls it when all workers run the train function."""
        assert self._timer is not None
        self._timer.cancel()


class WithoutTracebacks(logging.Filter):
    """Removes the tracebacks of what Ray Train logs; they stay in its own logs, which are written before."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns True: the message itself is shown."""
        record.exc_info = record.exc_text = None
        return True


_without_tracebacks = WithoutTracebacks()  # one for all calls: a handler takes it once


class ShortMessages(ControllerCallback):  # type: ignore[misc]
    """Has the controller print messages without tracebacks. What ended a run, the command says by itself."""

    def __reduce__(self) -> tuple[Callable[[], ShortMessages], tuple[()]]:
        """Has the controller, when it receives this callback, also shorten the first message of the scaling policy, whose
        ``after_controller_start`` asks for the workers' resources before any other callback is called."""
        return _receive_short_messages, ()

    def after_controller_start(self, train_run_context: Any) -> None:
        """Changes what goes to the command's terminal; Ray calls it in the controller, whose logs are set up."""
        shorten_messages()


def _receive_short_messages() -> ShortMessages:
    # the handlers are not there yet: Ray sets up the controller's logs after it has received the callbacks
    autoscaling_coordinator_client.logger.addFilter(_shorten_before)
    return ShortMessages()


def _shorten_before(_record: logging.LogRecord) -> bool:
    shorten_messages()
    return True


def shorten_messages() -> None:
    """Takes the tracebacks out of what Ray Train logs to the terminal of this process."""
    for handler in logging.getLogger("ray.train").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(_without_tracebacks)


class SurvivingBackend(_TorchBackend):  # type: ignore[misc]
    """Ends a group of workers even if Ray's memory monitor ended one of them.

    Ray itself expects workers that have died, but not for this reason: what was reserved for them then stayed reserved, and
    the next workers had no room.
    """

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Ends the process group; Ray calls it before it ends the workers."""
        with contextlib.suppress(ray.exceptions.OutOfMemoryError):
            super().on_shutdown(worker_group, backend_config)


class SurvivingTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's configuration of torch.distributed, with ``SurvivingBackend``."""

    @property
    def backend_cls(self) -> type[SurvivingBackend]:
        """Returns the class that Ray sets the workers up with."""
        return SurvivingBackend


class CheckpointBeforeResize(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Has the workers write a checkpoint before Ray ends them, at any moment, to go on with another number of them."""

    def __init__(self, control: Any, seconds: float) -> None:
        self.control, self.seconds = control, seconds
        self.is_running = False

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Notes that there are workers to ask; Ray calls it when all of them run the train function."""
        self.is_running = True

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Asks for the checkpoint and waits for it, ``seconds`` at most: without it the steps since the last are repeated.

        Ray calls it before each change of the number of workers, and before the first start.
        """
        if not self.is_running:
            return
        self.is_running = False
        end = time.monotonic() + self.seconds
        with contextlib.suppress(Exception):  # the driver's node does not answer
            ray.get(self.control.request_resize.remote(), timeout=5)
            while time.monotonic() < end and not ray.get(self.control.has_saved.remote(), timeout=5):
                time.sleep(0.1)
            ray.get(self.control.finish_resize.remote(), timeout=5)


def make_placeholder() -> ray.data.Dataset:
    """Makes a dataset to give to Ray, which wants one before it knows how many workers there will be.

    ``PlannedData`` makes the real one.
    """
    return ray.data.from_blocks([pa.table({"row": [0]})])


class PlannedData(DataConfig):  # type: ignore[misc]
    """Makes the stream of the rest of the run, from the newest checkpoint on, at each start of workers and for their number."""

    def __init__(self, tree: dict[str, Any], fingerprints: Fingerprints, end: int, resources: Resources) -> None:
        super().__init__(execution_options=ray.data.ExecutionOptions(preserve_order=True))
        self.tree, self.fingerprints, self.end, self.resources = tree, fingerprints, end, resources

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Returns each worker's part of the stream; Ray calls it at each start of workers."""
        run = reopen_inputs(parse_config(self.tree), self.fingerprints)
        newest, _ = checkpoint.find_newest(run.folder, run.store)
        first_step = read_facts(newest)["step"] if newest else 0
        resources = replace(self.resources, workers=world_size)
        stream = build_ray_stream(run.source, limit_steps(run.config, self.end), first_step, resources)
        parts: list[dict[str, Any]] = super().configure(
            {"train": stream}, world_size, worker_handles, worker_node_ids, **kwargs
        )
        return parts
