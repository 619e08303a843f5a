"""A page with the weak and strong views of one training step, made again from the seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate, pad

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.plan import compute_worker_rows
from pipeline.clips.sampling import describe_clip
from pipeline.clips.source import VideoSource
from pipeline.config import STUDENTS, Config
from pipeline.errors import UserError
from pipeline.methods import Views, compute_loss_weights, make_views
from pipeline.report.parts.html import encode_image, render_page, write_page
from pipeline.stream.batches import to_batch

HEIGHT, QUALITY = 96, 85
"""The height of a strip of frames in pixels, at most in its file, and on the page where all frames fit beside each other; its
JPEG quality."""
GAP = 2
"""White pixels between two frames."""


@dataclass(frozen=True)
class Slot:
    """One video of a plan row, and its views."""

    id: str
    true_class: str
    role: str
    """``labeled``, or ``unlabeled`` and its number."""
    strips: tuple[tuple[str, str, int], ...]
    """For each view its name, a data URI of its frames side by side, and the width in pixels at which they are shown."""


def write_step_page(config: Config, source: VideoSource, step: int, path: Path) -> None:
    """Writes the page of a step. Raises UserError if the run does not have this step."""
    if not 0 <= step < config.train.steps:
        raise UserError(f"--step {step} must lie between 0 and {config.train.steps - 1}, the run's last")
    weights = compute_loss_weights(config.method, step)
    views_of_rows = make_step_views(config, source, step)
    rows = [(int(columns["row"][0]), _build_slots(source, columns, views)) for columns, views in views_of_rows]
    covers = {name: describe_clip(getattr(config, name).clip) for name in STUDENTS}
    context = {"config": config, "step": step, "rows": rows, "weights": weights, "manifest": source.manifest, "covers": covers}
    write_page(render_page("step.html.j2", context), path, "--out")


def make_step_views(config: Config, source: VideoSource, step: int) -> Iterator[tuple[dict[str, Any], Views]]:
    """Yields the decoded columns and the views of every plan row of a step, row by row to save memory, as the training loop
    makes them.

    A view depends on its row, slot and seed only, so neither the batch nor the number of workers changes it.
    """
    weights = compute_loss_weights(config.method, step)
    for row in compute_worker_rows([step], config.data.labeled_per_step, 0, 1)[0]:
        columns = source.decode_rows(np.array([row]))
        wanted = weights.has_unlabeled, weights.has_strong
        yield columns, make_views(to_batch(columns), config, config.run.seed, "cpu", *wanted)


def _build_slots(source: VideoSource, columns: dict[str, Any], views: Views) -> list[Slot]:
    slots = []
    for slot, video in enumerate(columns["video"][0]):
        unlabeled = views.unlabeled
        if video < 0 or (slot and unlabeled is None):
            continue
        kinds = {"weak": unlabeled.weak, "strong": unlabeled.strong} if slot and unlabeled else {"labeled": views.labeled}
        strips = [
            (f"{student}, {kind if slot else 'weak'}", *draw_strip(views_of_kind[student][max(slot - 1, 0)]))
            for student in STUDENTS
            for kind, views_of_kind in kinds.items()
            if views_of_kind
        ]
        name = source.manifest.table["class"][int(video)].as_py() or "unknown"
        role = f"unlabeled {slot}" if slot else "labeled"
        slots.append(Slot(str(source.manifest.table["id"][int(video)].as_py()), name, role, tuple(strips)))
    return slots


def draw_strip(view_CTHW: torch.Tensor) -> tuple[str, int]:
    """Draws the frames of a normalized view side by side: a data URI, and the width at which they are HEIGHT high."""
    frames = arrange_frames(view_CTHW)
    return encode_image(frames, QUALITY), round(frames.shape[1] * HEIGHT / frames.shape[0])


def arrange_frames(view_CTHW: torch.Tensor) -> NDArray[np.uint8]:
    """Arranges the frames of a normalized view side by side, GAP white pixels between two: uint8 [H, T (W + GAP) - GAP, 3]."""
    frames_TCHW = view_CTHW.transpose(0, 1).mul(STD).add(MEAN).clamp(0, 1)
    if frames_TCHW.shape[-1] > HEIGHT:
        frames_TCHW = interpolate(frames_TCHW, size=(HEIGHT, HEIGHT), mode="area")
    wide_HWC = pad(frames_TCHW, (0, GAP), value=1).permute(2, 0, 3, 1).flatten(1, 2)[:, :-GAP]
    return np.asarray(wide_HWC.mul(255).round().to(torch.uint8).numpy())
