"""Measures the seconds of steps, and of the collectives that they wait for, on the device that computes them."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel


class Stopwatch:
    """Adds up spans of time: by the clock on a CPU, and on a GPU between two events of its stream, because Python sees only how
    long it took to launch the work. Nothing waits for the events before the sums are read."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        """Returns a mark of this moment, for ``add``."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, activity: str, begun: Any, ended: Any) -> None:
        """Adds the time between two marks to an activity's."""
        self._spans.append((activity, begun, ended))

    def read(self) -> dict[str, float]:
        """Returns the seconds of each activity since the last call. On a GPU it waits for the last of them to end."""
        spans, self._spans = self._spans, []
        seconds: dict[str, float] = {}
        for activity, begun, ended in spans:
            if self.cuda:
                ended.synchronize()
            seconds[activity] = seconds.get(activity, 0.0) + (begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun)
        return seconds


def time_collectives(wrapped: nn.Module, watch: Stopwatch) -> None:
    """Has DDP measure, as ``collective``, the time from a step's last gradient to the sum of its bucket over workers.

    That is the part that no computing hides, with the wait for slower workers. Earlier buckets overlap with the backward pass
    and do not count; neither does what BatchNorm and losses exchange during the passes.
    """
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.register_comm_hook(
            watch, lambda watch, bucket: _sum_and_time(watch, bucket)
        )  # it checks annotations, and knows no text


def _sum_and_time(watch: Stopwatch, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """Computes the mean over workers, as DDP does without a hook."""
    begun = watch.mark()
    future = allreduce_hook(None, bucket)  # type: ignore[arg-type]
    if not bucket.is_last():
        return future

    def mark_end(summed: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        watch.add("collective", begun, watch.mark())
        return summed.value()

    return future.then(mark_end)
