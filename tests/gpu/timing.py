"""Seconds of work on a device, without waiting for it in between: by CUDA's events, or by the clock on a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


def mark(device: torch.device) -> Any:
    """This moment on the device: when it has done all that it was asked for so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(begun: Any, ended: Any) -> float:
    """Of two marks, once the device is waited for."""
    return float(ended - begun) if isinstance(begun, float) else float(begun.elapsed_time(ended)) / 1000


def time_steps(work: Callable[[], object], device: torch.device, steps: int, warm_up: int) -> list[float]:
    """Seconds of each of ``steps`` calls, after some that warm up. The host runs ahead of the device as it does in training: it
    waits after the last call only."""
    for _ in range(warm_up):
        work()
    marks = [mark(device)]
    for _ in range(steps):
        work()
        marks.append(mark(device))
    wait(device)
    return [seconds_between(*both) for both in pairwise(marks)]


def wait(device: torch.device) -> None:
    """For all that the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Forget what is not used anymore, and the peak of memory with it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
