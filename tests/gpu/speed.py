"""How fast a step is, how much memory it takes, and against what."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.clips.plan import Plan
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.hardware import check_compiler, configure_torch, read_hardware
from pipeline.stream.upload_ahead import UploadAhead
from pipeline.training.dry_run import estimate_memory
from tests.gpu.parts import check_parts
from tests.gpu.plain import PlainSteps
from tests.gpu.setting import CLASSES, full_config, make_batch, make_setting, on_host, small_config
from tests.gpu.table import Row, at_least, at_most, guarded, if_time, measured
from tests.gpu.timing import free, time_steps, wait

WARM_UP, STEPS = 4, 8
SMALL_WARM_UP, SMALL_STEPS = 1, 2
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bf16": ({"precision": "bf16"}, {}),
    "bf16, contiguous layout": ({"precision": "bf16", "channels_last": False}, {}),
    "bf16, one pass for all views": ({"precision": "bf16"}, {"batch_norm": "joint"}),
    "TF32": ({"precision": "fp32"}, {}),
    "fp32 without TF32": ({"precision": "fp32"}, {}),
}
"""Knobs of ``train`` and of ``method``."""
OTHERS = [("bf16, contiguous layout", 8), ("bf16, one pass for all views", 8), *((name, 4) for name in KINDS)]
"""Kinds and labeled videos of the steps that are timed last; in fp32, 8 + 40 videos need twice an H100's memory."""
COMPILED = {"one pass for all views": ("joint", 60), "a pass for each kind of view": ("separate", 150)}
"""What is compiled: ``method.batch_norm``, and about how many seconds it takes, at one graph a student or one for each pass."""


def make_config(small: bool, labeled: int, train: dict[str, Any], method: dict[str, Any]) -> Config:
    """``labeled`` and five times as many unlabeled videos of 224 pixels, all losses on, with few kept labels as at a start."""
    sections = {"train": train, "method": {"supervised_steps": 0, "ramp_steps": 0, **method}}
    return small_config(**sections) if small else full_config(labeled, **sections)


def check_speed(device: torch.device, small: bool, end: float) -> Iterator[Row]:
    """Steps in bf16 of 8 + 40 videos, their parts and a plain restatement; then other kinds and 4 + 20 videos. What there is no
    time for is told."""
    steps, warm_up = (SMALL_STEPS, SMALL_WARM_UP) if small else (STEPS, WARM_UP)
    config = make_config(small, 8, *KINDS["bf16"])

    def run(what: str, check: Any, needed: float) -> Iterator[Row]:
        yield from if_time(what, lambda: guarded(what, check, may_need_more_memory=True), needed, end)
        free(device)

    yield from run("bf16, 8 + 40", lambda: _time_kind(device, config, "bf16", steps, warm_up), 20)
    yield from run("parts of a step", lambda: check_parts(device, config, steps, warm_up), 20)
    yield from run("plain restatement", lambda: check_against_plain(device, config, small, end), 60)
    for name, labeled in OTHERS:
        kind = make_config(small, labeled, *KINDS[name])
        yield from run(f"{name}, {labeled} + {5 * labeled}",
                       lambda kind=kind, name=name: _time_kind(device, kind, name, steps, warm_up), 20)  # fmt: skip


def _time_kind(device: torch.device, config: Config, name: str, steps: int, warm_up: int) -> Iterator[Row]:
    configure_torch(config.train)
    if name == "fp32 without TF32":  # the program has it with train.deterministic only, which also picks slower kernels
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    setting, batch = make_setting(config, device), make_batch(config, device=device)
    videos = batch.videos.numel()
    what = f"{name}, {len(batch.rows)} + {videos - len(batch.rows)}"
    time_steps(lambda: setting.take_step(batch), device, 0, warm_up)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # cuDNN, when it tries its algorithms, takes more than any step after it
    seconds = time_steps(lambda: setting.take_step(batch), device, steps, 1)
    yield measured(f"{what}: a step", [1000 * value for value in seconds], "ms")
    yield Row(f"{what}: videos", videos / statistics.median(seconds), "a second", n=len(seconds))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    if peak is not None:
        yield Row(f"{what}: peak memory", peak / 2**30, "GiB")
    if name == "bf16":  # an estimate takes seconds
        estimate = estimated_bytes(config)
        yield Row(f"{what}: memory by the dry run's estimate", estimate / 2**30, "GiB")
        if peak is not None:
            yield at_most(f"{what}: peak over the estimate, distance from 1", abs(peak / estimate - 1), 0.1)


def estimated_bytes(config: Config) -> int:
    """Of a step's memory, as ``--dry-run`` estimates it for a data set that is as large as the setting's."""
    videos = np.arange(4096)
    plan = Plan(videos[:2048], videos[2048:], config.data.unlabeled_per_labeled, config.data.labeled_per_step, 0)
    return sum(estimate_memory(config, plan, CLASSES).values())


def check_against_plain(device: torch.device, config: Config, small: bool, end: float) -> Iterator[Row]:
    """A plain restatement with its data loader, and our step with its views, from decoded clips both."""
    configure_torch(config.train)
    steps, warm_up = (SMALL_STEPS, SMALL_WARM_UP) if small else (STEPS, WARM_UP)
    contiguous = config.model_copy(update={"train": config.train.model_copy(update={"channels_last": False})})
    plain = PlainSteps(contiguous, make_setting(contiguous, device).state.students, device, 0 if small else None)
    made = plain.time_with_views_made(steps, warm_up)
    yield measured("a plain restatement's step, views made beforehand", [1000 * value for value in made], "ms")
    with_loader = plain.time_with_loader(steps, end - 20)  # our own step comes after it
    told = f"{plain.processes} processes" + ("" if small else plain.why_so_few)
    yield measured("the same, views from its data loader", [1000 * value for value in with_loader], "ms", told)
    del plain
    free(device)
    setting, batch = make_setting(config, device), on_host(make_batch(config), device)
    uploads = UploadAhead(iter(lambda: batch, None), device)

    def step() -> None:
        setting.take_step(uploads.take())
        uploads.start_next()

    ours = time_steps(step, device, steps, warm_up)
    yield measured("our step from clips on the host", [1000 * value for value in ours], "ms")
    yield at_least("times as fast as the plain restatement", statistics.fmean(with_loader) / statistics.median(ours), 2.0)


def check_compiled(device: torch.device, small: bool, end: float) -> Iterator[Row]:
    """The same step with compiled students. A first step is told at once: the time may end in the next one."""
    backend = "aot_eager" if small else "inductor"
    for what, (batch_norm, needed) in COMPILED.items():
        config = make_config(small, 8, {"precision": "bf16", "compile": backend}, {"batch_norm": batch_norm})
        try:
            check_compiler(config, read_hardware(), device.type == "cuda")
        except UserError as error:
            yield Row("compiled students", None, goal="measured", met=False, note=str(error))
            return
        name = f"compiled, {what}"
        rows = guarded(name, lambda config=config, name=name: _compiled(device, config, name, small))
        yield from if_time(name, lambda rows=rows: rows, 0 if small else needed, end)
        free(device)


def _compiled(device: torch.device, config: Config, what: str, small: bool) -> Iterable[Row]:
    configure_torch(config.train)
    begun = time.perf_counter()
    setting, batch = make_setting(config, device), make_batch(config, device=device)
    setting.take_step(batch)
    wait(device)
    yield Row(f"{what}: first step by {config.train.compile}", time.perf_counter() - begun, "s")
    steps, warm_up = (SMALL_STEPS, SMALL_WARM_UP) if small else (STEPS, WARM_UP)
    seconds = time_steps(lambda: setting.take_step(batch), device, steps, warm_up)
    yield measured(f"{what}: a step of {batch.videos.numel()} videos", [1000 * value for value in seconds], "ms")
    yield at_least(f"{what}: videos", batch.videos.numel() / statistics.median(seconds), 120, "a second")
