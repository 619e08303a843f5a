"""Measures the time to make each kind of view of random clips, as a multiple of the time to resize them and do nothing else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pipeline.bench.figures import compute_ratio
from pipeline.clips.modalities import Modality, check_modalities, derive_modality
from pipeline.clips.views import make_center_views, make_strong_views, make_weak_views
from pipeline.config import Config, TimeSection
from pipeline.hardware import choose_device
from pipeline.progress import show_progress

VIEW_KINDS: dict[str, tuple[str, dict[str, Any], Modality]] = {
    "weak": ("weak", {}, "rgb"),
    "strong": ("strong", {}, "rgb"),
    "strong, geometry alone": ("strong", {"appearance": False, "cutout": 0.0}, "rgb"),
    "strong, appearance alone": ("strong", {"geometric": False, "cutout": 0.0}, "rgb"),
    "strong, cutout alone": ("strong", {"ops": 0}, "rgb"),
    "strong, and frames in another order": ("strong", {"time": TimeSection(warp=(2, 4, 8), reverse=0.5, slowest=0.5)}, "rgb"),
    "weak and temporal gradient": ("weak", {}, "temporal_gradient"),
    "weak and optical flow": ("weak", {}, "optical_flow"),
}
"""For each measured name: the kind of view, the changes of ``views.strong``, and the modality that is derived from the view."""
CLIPS_AT_ONCE = 32
"""The number of clips whose views are made together."""


def bench_views(config: Config, repeats: int, at_once: int = CLIPS_AT_ONCE) -> dict[str, Any]:
    """Measures milliseconds per clip of the primary for each kind of view, on the GPU if there is one.

    Reports the median over ``repeats``, and each kind as a multiple of the floor, which resizes the clip and does nothing
    else. ``at_once`` clips are made together. Raises UserError if a modality needs a package that is missing.
    """
    device = choose_device(config)
    clip, size = config.primary.clip, config.data.decode_size
    clips = torch.randint(0, 256, (at_once, clip.frames, size, size, 3), dtype=torch.uint8, device=device)
    seeds = list(range(at_once))
    makers = {"weak": make_weak_views, "strong": make_strong_views}

    def make_view(kind: str, strong: dict[str, Any], modality: Modality) -> torch.Tensor:
        section = config.views.model_copy(update={"strong": config.views.strong.model_copy(update=strong)})
        return derive_modality(makers[kind](clips, seeds, section, clip.size), modality)

    check_modalities([modality for _, _, modality in VIEW_KINDS.values()])
    work: dict[str, Callable[[], torch.Tensor]] = {"floor, resize alone": lambda: make_center_views(clips, clip.size)}
    work |= {name: partial(make_view, *parts) for name, parts in VIEW_KINDS.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in show_progress(range(repeats + 1), repeats + 1, "repeats"):  # the first one warms up
        for name, make in work.items():
            start = time.perf_counter()
            make()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append(1000 * (time.perf_counter() - start) / at_once)
    floors = times["floor, resize alone"]
    return {
        "views": {
            name: {"milliseconds_per_clip": round(statistics.median(values), 3), **compute_ratio("floor_ratio", values, floors)}
            for name, values in times.items()
        },
        "clip": f"{clip.frames} frames of {size} to {clip.size} pixels, {at_once} at once",
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
