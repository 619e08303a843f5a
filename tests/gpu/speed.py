"""How fast a step is, what it spends its time on, how much memory it takes, and against what."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.clips.batch import Batch
from pipeline.config import Config
from pipeline.methods import loss_weights, make_views
from pipeline.methods.passes import pass_views
from pipeline.methods.precision import PRECISIONS
from tests.gpu.plain import Sample, make_loader, take_plain_step
from tests.gpu.setting import Setting, full_config, make_batch, make_setting, small_config
from tests.gpu.table import Row, at_least, at_most, measured

WARM_UP, STEPS = 10, 20
PROCESSES = 16
"""Of the data loader of the plain restatement, as research drops set them on a node of that many cores."""
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32 without TF32": ({"precision": "fp32", "deterministic": False}, {}),
    "TF32": ({"precision": "fp32"}, {}),
    "bf16": ({"precision": "bf16"}, {}),
    "bf16, contiguous layout": ({"precision": "bf16", "channels_last": False}, {}),
    "bf16, one pass for all views": ({"precision": "bf16"}, {"batch_norm": "joint"}),
}
"""Knobs of ``train`` and of ``method``."""


def make_config(small: bool, labeled: int, train: dict[str, Any], method: dict[str, Any]) -> Config:
    """``labeled`` and five times as many unlabeled videos of 224 pixels, all losses on, with few kept labels as at a start."""
    sections = {"train": train, "method": {"supervised_steps": 0, "ramp_steps": 0, **method}}
    return small_config(**sections) if small else full_config(labeled, **sections)


def time_steps(work: Callable[[], object], device: torch.device, steps: int = STEPS, warm_up: int = WARM_UP) -> list[float]:
    """Seconds of each of ``steps`` calls, after some that warm up; the device is waited for between two of them."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(steps):
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - begun)
    return found


def wait(device: torch.device) -> None:
    """For all that the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Forget what is not used any more, and the peak of memory with it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def check_speed(device: torch.device, small: bool) -> list[Row]:
    """Steps of 4 + 20 and 8 + 40 videos in each kind, the parts of a step, the bare networks, a plain restatement."""
    rows: list[Row] = []
    repeats = {"steps": 2, "warm_up": 1} if small else {}
    for labeled in (4, 8):
        for name, (train, method) in KINDS.items():
            rows += _guarded(f"{name}, {labeled} + {5 * labeled}", lambda *of: _steps_of(device, *of, repeats),
                             make_config(small, labeled, train, method), name)  # fmt: skip
            free(device)
    config = make_config(small, 8, {"precision": "bf16"}, {})
    rows += _guarded("parts of a step", lambda: _parts(device, config, repeats))
    free(device)
    rows += _guarded("plain restatement", lambda: _against_plain(device, config, small))
    free(device)
    return rows


def _guarded(what: str, work: Callable[..., list[Row]], *arguments: Any) -> list[Row]:
    """A part that does not fit the memory is a row that says so; the next one goes on."""
    try:
        return work(*arguments)
    except torch.OutOfMemoryError as error:
        return [Row(what, None, note=f"out of memory: {str(error).splitlines()[0][:100]}")]


def _steps_of(device: torch.device, config: Config, name: str, repeats: dict[str, int]) -> list[Row]:
    torch.set_float32_matmul_precision("highest" if name == "fp32 without TF32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "fp32 without TF32"
    torch.backends.cudnn.benchmark = True
    setting, batch = make_setting(config, device), make_batch(config, device=device)
    seconds = time_steps(lambda: setting.take_step(batch), device, **repeats)
    videos = batch.videos.numel()
    what = f"{name}, {len(batch.rows)} + {videos - len(batch.rows)}"
    rows = [measured(f"{what}: a step", [1000 * value for value in seconds], "ms")]
    rows.append(Row(f"{what}: videos", videos / statistics.median(seconds), "a second", n=len(seconds)))
    if device.type == "cuda":
        rows.append(Row(f"{what}: peak memory", torch.cuda.max_memory_allocated(device) / 2**30, "GiB"))
    return rows


def _parts(device: torch.device, config: Config, repeats: dict[str, int]) -> list[Row]:
    setting, batch = make_setting(config, device), make_batch(config, device=device)
    whole = time_steps(lambda: setting.take_step(batch), device, **repeats)
    views_alone = time_steps(lambda: make_views(batch, config, 0, device), device, **repeats)
    weights, dtype = loss_weights(config.method, 0), PRECISIONS[config.train.precision]
    views = make_views(batch, config, 0, device, weights.use_unlabeled, weights.use_strong)
    made = replace(setting, place=replace(setting.place, views=lambda *_, **__: iter([views])))
    without_views = time_steps(lambda: made.take_step(batch), device, **repeats)

    def bare() -> None:
        setting.state.method.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            passed = pass_views(setting.state.students, views, weights, config.method.batch_norm)
        logits = [said[0].float() for outputs in passed for said in outputs.values() if said[0].requires_grad]
        torch.stack([values.mean() for values in logits]).sum().backward()

    networks = time_steps(bare, device, **repeats)
    middle = statistics.median
    rows = [
        measured("views alone", [1000 * value for value in views_alone], "ms"),
        at_most("views, share of a step", middle(views_alone) / middle(whole), 0.05),
        at_most("a step with views made, over the bare networks", middle(without_views) / middle(networks), 1.08),
    ]
    return rows + (_kernels(device, setting, batch) if device.type == "cuda" else [])


def _kernels(device: torch.device, setting: Setting, batch: Batch) -> list[Row]:
    """Kernels of a step, and the share of its time in which the GPU has none to run."""
    steps = 3
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        begun = time.perf_counter()
        for _ in range(steps):
            setting.take_step(batch)
        wait(device)
        seconds = time.perf_counter() - begun
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in recorded.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, last = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    whole = max(end for _, end in spans) - spans[0][0] if spans else 1e6 * seconds
    return [
        Row("kernels and copies of a step", len(spans) / steps),
        at_most("GPU idle, share of the time of steps", 1 - busy / whole, 0.05, note="with the profiler on"),
    ]


def _against_plain(device: torch.device, config: Config, small: bool) -> list[Row]:
    """A plain restatement with its data loader, and our step with its views, from decoded clips both."""
    warm_up, steps = (1, 2) if small else (5, 10)
    plain_config = config.model_copy(update={"train": config.train.model_copy(update={"channels_last": False})})
    plain, without_loader = _time_plain(plain_config, device, 0 if small else PROCESSES, steps, warm_up)
    free(device)
    setting, batch = make_setting(config, device), make_batch(config)
    if device.type == "cuda":
        pinned = {name: getattr(batch, name).pin_memory() for name in ("primary", "auxiliary")}
        batch = replace(batch, **pinned)
    ours = time_steps(lambda: setting.take_step(batch), device, steps, warm_up)
    middle = statistics.median
    return [
        measured("a plain restatement's step, views in its data loader", [1000 * value for value in plain], "ms"),
        measured("the same, views made beforehand", [1000 * value for value in without_loader], "ms"),
        measured("our step from clips on the host", [1000 * value for value in ours], "ms"),
        at_least("times as fast as the plain restatement", middle(plain) / middle(ours), 2.0),
    ]


def _time_plain(
    config: Config, device: torch.device, processes: int, steps: int, warm_up: int
) -> tuple[list[float], list[float]]:
    """Seconds of plain steps, with views from the loader and with views made beforehand."""
    students = make_setting(config, device).state.students
    optimizer = torch.optim.SGD(students.parameters(), lr=0.01, momentum=0.9)
    loader, dtype = make_loader(config, processes), PRECISIONS[config.train.precision]
    made = next(loader)

    def step(fetch: Callable[[], Sample]) -> float:
        return take_plain_step(students, optimizer, fetch(), device, dtype)

    with_loader = time_steps(lambda: step(lambda: next(loader)), device, steps, warm_up)
    return with_loader, time_steps(lambda: step(lambda: made), device, steps, warm_up)


def check_compiled(device: torch.device, small: bool) -> list[Row]:
    """The same step with compiled students."""
    backend = "aot_eager" if small else "inductor"
    config = make_config(small, 8, {"precision": "bf16", "compile": backend}, {})
    begun = time.perf_counter()
    setting, batch = make_setting(config, device), make_batch(config, device=device)
    setting.take_step(batch)
    wait(device)
    rows = [Row(f"first step with {backend}", time.perf_counter() - begun, "s")]
    repeats = {"steps": 2, "warm_up": 1} if small else {}
    seconds = time_steps(lambda: setting.take_step(batch), device, **repeats)
    rate = batch.videos.numel() / statistics.median(seconds)
    rows.append(measured(f"a compiled step of {batch.videos.numel()} videos", [1000 * value for value in seconds], "ms"))
    return [*rows, at_least("compiled, videos", rate, 120, "a second")]
