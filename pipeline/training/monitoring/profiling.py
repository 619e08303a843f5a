"""Records where the time of a step goes: a trace of some steps for Chrome's and Perfetto's viewers, and a short table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.config import MethodSection
from pipeline.methods import compute_loss_weights

STEP_PHASES = ("views", "forward", "backward", "update")
"""What ``training.step`` names the phases of a step, each a range of the profile."""
SKIPPED, PROFILED = 5, 5
"""How many steps warm up (decoders start, memory is allocated, kernels are chosen), and how many are recorded after them."""
FILE = "profile.json"
RANGES = ("batch", *STEP_PHASES, "after")
"""The ranges of the table: waiting for the batch, the phases of the step, then metrics and checkpoints."""
OPERATIONS = 8
"""How many lines of the table are for single operations."""


def choose_profiled_steps(section: MethodSection, step: int, end: int) -> range | None:
    """Chooses the steps to record of a run that goes from ``step`` to ``end``: the first ones after warming up whose losses use
    unlabeled videos, or the first ones if none do. Returns None if too few steps are left."""
    starts = range(step + SKIPPED, end - PROFILED + 1)
    if not starts:
        return None
    start = next((start for start in starts if compute_loss_weights(section, start).has_unlabeled), starts[0])
    return range(start, start + PROFILED)


class StepProfile:
    """A context that records the steps of ``span`` and prints their table, or does nothing if ``span`` is None."""

    def __init__(self, folder: Path, span: range | None, device: torch.device) -> None:
        self.folder, self.span, self.device = folder, span, device
        self._profile: Any = None

    def step(self, done: int) -> None:
        """Starts or ends recording where it is due. To be called after every step; the whole run has taken ``done`` of them."""
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
            print(f"{format_profile(recorded.key_averages(), len(self.span))}\ntrace: {self.folder / FILE}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._profile is not None:  # the run was stopped in between
            self._profile.stop()


def is_gpu_event(event: Any) -> bool:
    """Returns whether an event of a profile is a kernel, copy or fill on the GPU. A profile counts its time again for the
    operator that launched it, which is an event of the CPU, and for the code's named ranges, which are events of both."""
    return bool(event.device_type.name == "CUDA" and not event.is_user_annotation)


def format_profile(averages: Iterable[Any], steps: int) -> str:
    """Formats milliseconds a step and share of the steps' time, of the phases and then of the operations that take most.

    On a GPU the phases' times are those of the CPU, which runs ahead of it; the operations' are the GPU's.
    """
    events = list(averages)
    parts = {name: sum(event.cpu_time_total for event in events if event.key == name) for name in RANGES}
    whole = sum(parts.values())
    lines = [f"of {steps} steps, {whole / steps / 1000:.1f} ms each:"]
    lines += [_format_line(name, spent, whole, steps) for name, spent in parts.items()]
    kernels = [event for event in events if is_gpu_event(event)]
    on_gpu = sum(event.self_device_time_total for event in kernels)
    own: dict[str, float] = {}
    for event in kernels or events:
        own[event.key] = own.get(event.key, 0.0) + (event.self_device_time_total if kernels else event.self_cpu_time_total)
    most = sorted((item for item in own.items() if item[0] not in RANGES), key=lambda item: -item[1])[:OPERATIONS]
    lines += [f"operations that took most, without those they call, {'GPU' if kernels else 'CPU'}:"]
    return "\n".join([*lines, *(_format_line(name, spent, on_gpu or whole, steps) for name, spent in most)])


def _format_line(name: str, microseconds: float, whole: float, steps: int) -> str:
    return f"  {name:44} {microseconds / steps / 1000:9.2f} ms {microseconds / max(whole, 1e-9):6.1%}"
