"""Seconds of steps and of the collectives that they wait for, measured where the work is done."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel


class Stopwatch:
    """Sums of spans: by the clock on a CPU; on a GPU between two events of its stream, since what Python sees there is how long
    it took to say what is to be done. Events are looked at when the sums are read, not before."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        """This moment."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, what: str, begun: Any, ended: Any) -> None:
        """Count the time between two marks."""
        self._spans.append((what, begun, ended))

    def read(self) -> dict[str, float]:
        """Seconds of each kind since the last call. On a GPU it waits for the last of them."""
        spans, self._spans = self._spans, []
        seconds: dict[str, float] = {}
        for what, begun, ended in spans:
            if self.cuda:
                ended.synchronize()
            seconds[what] = seconds.get(what, 0.0) + (begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun)
        return seconds


def time_collectives(wrapped: nn.Module, watch: Stopwatch) -> None:
    """Have DDP count, as ``collective``, from when the last gradient of a step is there to when the sum over workers of its
    bucket is: what no computing hides. It includes the wait for a worker that is slower. The buckets before overlap with the
    backward pass, and are not counted; neither is what BatchNorm and losses exchange in the passes."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.register_comm_hook(
            watch, lambda watch, bucket: _summed(watch, bucket)
        )  # it checks annotations, and knows no text


def _summed(watch: Stopwatch, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The mean over workers, as DDP takes it without a hook."""
    begun = watch.mark()
    future = allreduce_hook(None, bucket)  # type: ignore[arg-type]
    if not bucket.is_last():
        return future

    def arrived(one: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        watch.add("collective", begun, watch.mark())
        return one.value()

    return future.then(arrived)
