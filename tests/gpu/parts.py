"""What a step spends its time on: views, the networks, all else; and what the device does meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.config import Config
from pipeline.hardware import configure_torch
from pipeline.methods import Views, compute_loss_weights, make_views, make_views_of_parts
from pipeline.methods.parts.forward import pass_views
from pipeline.methods.parts.precision import autocast
from pipeline.stream.upload_ahead import UploadAhead
from pipeline.training.monitoring.profiling import is_gpu_event
from tests.gpu.setting import Setting, make_batch, make_setting, on_host
from tests.gpu.table import Row, at_most, measured, must
from tests.gpu.timing import mark, seconds_between, time_steps, wait

PROFILED = 3
"""Steps in the profile."""


class TimedViews:
    """Makes views as a step does, in the midst of one, and notes how long that takes on the device and on the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[Any, Any]] = []
        self.host: list[float] = []

    def __call__(self, *of: Any, **named: Any) -> Iterator[Views]:
        parts = make_views_of_parts(*of, **named)
        while True:
            begun, mark_before = time.perf_counter(), mark(self.device)
            views = next(parts, None)
            if views is None:
                return
            self.marks.append((mark_before, mark(self.device)))
            self.host.append(time.perf_counter() - begun)
            yield views


def check_parts(device: torch.device, config: Config, steps: int, warm_up: int) -> Iterator[Row]:
    """Shares of a step, the step against the bare networks, and how busy the device is."""
    configure_torch(config.train)
    setting, batch = make_setting(config, device), make_batch(config, device=device)
    timed = TimedViews(device)
    whole = time_steps(lambda: _with_views(setting, timed).take_step(batch), device, steps, warm_up)
    on_device = [seconds_between(*both) for both in timed.marks][-steps:]
    middle = statistics.median
    yield measured("views within a step, on the device", [1000 * value for value in on_device], "ms")
    yield measured("views within a step, drawn and launched by the host", [1000 * value for value in timed.host[-steps:]], "ms")
    yield at_most("views, share of a step", middle(on_device) / middle(whole), 0.05)

    weights = compute_loss_weights(config.method, 0)
    views = make_views(batch, config, 0, device, weights.has_unlabeled, weights.has_strong)
    made = _with_views(setting, lambda *_, **__: iter([views]))
    without_views = time_steps(lambda: made.take_step(batch), device, steps, warm_up)

    def bare() -> None:
        setting.state.method.zero_grad(set_to_none=True)
        with autocast(device, config.train.precision):
            passed = pass_views(setting.state.students, views, weights, config.method.batch_norm)
        logits = [one.logits.float() for outputs in passed for one in outputs.values() if one.logits.requires_grad]
        torch.stack([values.mean() for values in logits]).sum().backward()

    networks = time_steps(bare, device, steps, warm_up)
    yield at_most("a step with views made, over the bare networks", middle(without_views) / middle(networks), 1.08)
    if device.type == "cuda":
        del views, made
        yield from _profile(device, setting)


def _with_views(setting: Setting, views: Any) -> Setting:
    return replace(setting, context=replace(setting.context, make_views=views))


def _profile(device: torch.device, setting: Setting) -> list[Row]:
    """What the device does in steps whose clips are sent ahead from pinned memory, as in training."""
    uploads = UploadAhead(repeat(on_host(make_batch(setting.config), device)), device)

    def step() -> None:
        setting.take_step(uploads.take())
        uploads.start_next()

    for _ in range(2):
        step()
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:  # with the host's operators, launching takes longer
        for _ in range(PROFILED):
            step()
        wait(device)
    return rows_of_profile([event for event in recorded.events() or [] if is_gpu_event(event)], PROFILED)


def rows_of_profile(events: Sequence[Any], steps: int) -> list[Row]:
    """Of the device's kernels, copies and fills in ``steps`` steps: how many, the share of time without any, whether a copy to
    the device comes from memory that is not pinned, for which the host waits."""
    if not events:
        return [Row("GPU idle, share of the time of steps", None, goal="at most 0.05", met=False, note="the profile is empty")]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, last = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    idle = 1 - busy / (last - spans[0][0])
    pageable = {event.name for event in events if event.name.startswith("Memcpy HtoD (Pageable")}
    return [
        Row("kernels, copies and fills of a step", len(spans) / steps),
        at_most("GPU idle, share of the time of steps", idle, 0.05, note="with the profiler on"),
        must("no copy to the device comes from pageable memory", not pageable, ", ".join(pageable)),
    ]
