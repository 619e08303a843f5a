"""What both students saw at one step of a run, made again from the seeds: a page of weak and strong views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.plan import worker_rows
from pipeline.clips.sampling import describe_clip
from pipeline.clips.source import Source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.methods import STUDENTS, Views, loss_weights, make_views
from pipeline.report.html import image_uri, render_page, write_page
from pipeline.stream.batches import to_batch

HEIGHT, QUALITY = 96, 85
"""Largest height of a strip of frames in pixels, and its JPEG quality."""


@dataclass(frozen=True)
class Slot:
    """One video of a plan row and its views."""

    id: str
    true_class: str
    place: str
    """labeled, or unlabeled with its number."""
    strips: tuple[tuple[str, str], ...]
    """(which view, data URI of its frames side by side)."""


def write_step(config: Config, source: Source, step: int, path: Path) -> None:
    """Write the page of a step. Raises UserError for a step that the run does not have."""
    if not 0 <= step < config.train.steps:
        raise UserError(f"--step {step} must lie between 0 and {config.train.steps - 1}, the run's last")
    weights = loss_weights(config.method, step)
    rows = [(int(columns["row"][0]), _slots(source, columns, views)) for columns, views in step_views(config, source, step)]
    covers = {name: describe_clip(getattr(config, name).clip) for name in STUDENTS}
    context = {"config": config, "step": step, "rows": rows, "weights": weights, "manifest": source.manifest, "covers": covers}
    write_page(render_page("step.html.j2", context), path, "--out")


def step_views(config: Config, source: Source, step: int) -> Iterator[tuple[dict[str, Any], Views]]:
    """(decoded columns, views) of every plan row of a step, as the training loop makes them, row by row to save memory.

    A view depends on its row, slot and seed alone, so neither the batch nor the number of workers changes it.
    """
    weights = loss_weights(config.method, step)
    for row in worker_rows([step], config.data.labeled_per_step, 0, 1)[0]:
        columns = source.rows(np.array([row]))
        wanted = weights.use_unlabeled, weights.use_strong
        yield columns, make_views(to_batch(columns), config, config.run.seed, "cpu", *wanted)


def _slots(source: Source, columns: dict[str, Any], views: Views) -> list[Slot]:
    slots = []
    for slot, video in enumerate(columns["video"][0]):
        unlabeled = views.unlabeled
        if video < 0 or (slot and unlabeled is None):
            continue
        kinds = {"weak": unlabeled.weak, "strong": unlabeled.strong} if slot and unlabeled else {"labeled": views.labeled}
        strips = [
            (f"{student}, {kind if slot else 'weak'}", strip(made[student][max(slot - 1, 0)]))
            for student in STUDENTS
            for kind, made in kinds.items()
            if made
        ]
        name = source.manifest.table["class"][int(video)].as_py() or "unknown"
        place = f"unlabeled {slot}" if slot else "labeled"
        slots.append(Slot(str(source.manifest.table["id"][int(video)].as_py()), name, place, tuple(strips)))
    return slots


def strip(view_CTHW: torch.Tensor) -> str:
    """Frames of a normalized view side by side, at most HEIGHT pixels high, as a data URI."""
    return image_uri(pixels(view_CTHW), QUALITY)


def pixels(view_CTHW: torch.Tensor) -> NDArray[np.uint8]:
    """[H, T W, 3] uint8 of a normalized view."""
    frames_TCHW = view_CTHW.transpose(0, 1).mul(STD).add(MEAN).clamp(0, 1)
    if frames_TCHW.shape[-1] > HEIGHT:
        frames_TCHW = interpolate(frames_TCHW, size=(HEIGHT, HEIGHT), mode="area")
    wide_HWC = frames_TCHW.permute(2, 0, 3, 1).flatten(1, 2)
    return np.asarray(wide_HWC.mul(255).round().to(torch.uint8).numpy())
