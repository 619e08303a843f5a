"""What the driver, Ray's controller and the workers tell each other: to stop, to make room, and why a process ended itself."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.training.watchdog import end_this_process

RESIZE = -1
"""Stands for a signal's number when the number of workers is about to change."""


@ray.remote(num_cpus=0)
class RunControl:
    """An actor on the driver's node. It holds the request to stop, and the reasons why processes ended themselves."""

    def __init__(self) -> None:
        self.request = 0
        self.is_saved = False
        self.reasons: dict[int | None, str] = {}

    def request_stop(self, signal_number: int) -> None:
        """Asks the workers to save and stop; the driver calls it when it got this signal."""
        self.request = signal_number

    def request_resize(self) -> None:
        """Asks the workers to save and end, so that another number of them can go on. A signal to stop takes precedence."""
        self.request, self.is_saved = self.request or RESIZE, False

    def read_request(self) -> int:
        """Returns the number of the signal that asks to stop, ``RESIZE``, or 0 if nothing is asked."""
        return self.request

    def report_saved(self) -> None:
        """Notes that a checkpoint is written; the first worker calls it before it ends."""
        self.is_saved = True

    def has_saved(self) -> bool:
        """Returns whether a checkpoint was written since ``request_resize``."""
        return self.is_saved

    def finish_resize(self) -> None:
        """Takes the request to resize back, before the new workers start."""
        self.request = 0 if self.request == RESIZE else self.request

    def report_end(self, worker: int | None, reason: str) -> None:
        """Notes why a worker, or the controller (None), is about to end itself."""
        self.reasons[worker] = reason

    def take_end_reasons(self) -> dict[int | None, str]:
        """Returns the reasons that were reported since this was called last, by worker."""
        reasons, self.reasons = self.reasons, {}
        return reasons


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Returns the strategy that keeps an actor on this process's node, so that it lives as long as the node does."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def end_with_reason(control: Any, worker: int | None, reason: str) -> None:
    """Ends this process and lets the driver know why. ``worker`` is its rank, or None for the controller."""
    with contextlib.suppress(Exception):  # the driver's node does not answer
        ray.get(control.report_end.remote(worker, reason), timeout=5)
    end_this_process(reason, with_stacks=worker is not None)  # the controller's threads are Ray's own
