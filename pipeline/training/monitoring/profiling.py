"""Where the time of a step goes: a trace of some steps for Chrome's and Perfetto's viewers, and a short table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.config import MethodSection
from pipeline.methods import loss_weights
from pipeline.training.step import PARTS

SKIPPED, PROFILED = 5, 5
"""Steps that warm up (decoders start, memory is allocated, kernels are chosen), and steps that are recorded after them."""
FILE = "profile.json"
RANGES = ("batch", *PARTS, "after")
"""Waiting for the batch, the parts of the step, metrics and checkpoints."""
OPERATIONS = 8
"""Lines of the table for single operations."""


def profiled_steps(section: MethodSection, step: int, end: int) -> range | None:
    """The steps to record of a run that goes from ``step`` to ``end``: the first ones after warming up whose losses need
    unlabeled videos, or the first ones if none do; None if there are not as many."""
    starts = range(step + SKIPPED, end - PROFILED + 1)
    if not starts:
        return None
    start = next((start for start in starts if loss_weights(section, start).use_unlabeled), starts[0])
    return range(start, start + PROFILED)


class StepProfile:
    """Within it ``step`` is called after every step; it records those of ``span`` and prints the table. None: nothing."""

    def __init__(self, folder: Path, span: range | None, device: torch.device) -> None:
        self.folder, self.span, self.device = folder, span, device
        self._profile: Any = None

    def step(self, done: int) -> None:
        """Tell that ``done`` steps are done, of the whole run."""
        if self.span is None:
            return
        if done == self.span.start:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            self._profile = profile(activities=activities)
            self._profile.start()
        elif done == self.span.stop and self._profile is not None:
            recorded, self._profile = self._profile, None
            recorded.stop()
            recorded.export_chrome_trace(str(self.folder / FILE))
            print(f"{table(recorded.key_averages(), len(self.span))}\ntrace: {self.folder / FILE}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._profile is not None:  # the run was stopped in between
            self._profile.stop()


def is_of_gpu(event: Any) -> bool:
    """Whether an event of a profile is a kernel, copy or fill on the GPU. A profile tells its time again of the operator that
    launched it, which is of the CPU, and of the code's named ranges, which are of both."""
    return bool(event.device_type.name == "CUDA" and not event.is_user_annotation)


def table(averages: Iterable[Any], steps: int) -> str:
    """Milliseconds a step and share of the steps' time: of the parts, then of the operations that take most themselves.

    On a GPU the parts' times are those of the CPU, which runs ahead of it; the operations' are the GPU's.
    """
    events = list(averages)
    parts = {name: sum(event.cpu_time_total for event in events if event.key == name) for name in RANGES}
    whole = sum(parts.values())
    lines = [f"of {steps} steps, {whole / steps / 1000:.1f} ms each:"]
    lines += [_line(name, spent, whole, steps) for name, spent in parts.items()]
    kernels = [event for event in events if is_of_gpu(event)]
    on_gpu = sum(event.self_device_time_total for event in kernels)
    own: dict[str, float] = {}
    for event in kernels or events:
        own[event.key] = own.get(event.key, 0.0) + (event.self_device_time_total if kernels else event.self_cpu_time_total)
    most = sorted((item for item in own.items() if item[0] not in RANGES), key=lambda item: -item[1])[:OPERATIONS]
    lines += [f"operations that took most, without those they call, {'GPU' if kernels else 'CPU'}:"]
    return "\n".join([*lines, *(_line(name, spent, on_gpu or whole, steps) for name, spent in most)])


def _line(name: str, microseconds: float, whole: float, steps: int) -> str:
    return f"  {name:44} {microseconds / steps / 1000:9.2f} ms {microseconds / max(whole, 1e-9):6.1%}"
