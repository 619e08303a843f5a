"""How good a state is, by labeled videos that were kept from training: what ``train.keep_best`` chooses checkpoints by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from pipeline.clips.seeds import Ints
from pipeline.clips.source import Columns, Source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest import content
from pipeline.manifest.isolation import num_cores
from pipeline.methods.precision import center_logits
from pipeline.stream.in_process import map_ahead

LOOKED_AT = 8
"""Files of the evaluated split that are looked for before a run starts: some may be missing, but not all."""
BATCH_VIEWS = 8
"""Videos at once, where ``evaluation.batch_views`` does not say: few, because a GPU holds all of the training beside them."""


def held_out_videos(source: Source) -> Ints:
    """Manifest rows of the validation split whose labels are known. Raises UserError when there are none."""
    rows = source.evaluated("validation")
    known: Ints = rows[source.columns["label"][rows] >= 0]
    if len(known) == 0:
        raise UserError(f"no validation video of {source.manifest.path} has a label: keep some with jobs.label --hold-out 10%")
    return known


def check_held_out(source: Source, config: Config) -> None:
    """Raises UserError if ``train.keep_best`` has nothing to choose by."""
    if config.train.keep_best:
        try:
            held_out_videos(source)
        except UserError as error:
            best = config.train.keep_best
            raise UserError(f"train.keep_best={best} needs held-out videos: {error}; or set it to 0") from None


def check_evaluated(source: Source, config: Config) -> None:
    """Raises UserError for what would end the evaluation after the last step: nothing to evaluate, no known class, no file."""
    split = config.evaluation.split
    rows = source.evaluated(split)
    if not pc.any(pc.greater_equal(source.manifest.table["label"].take(pa.array(rows)), 0)).as_py():
        what = f"none of the {len(rows)} videos of {source.manifest.path} in evaluation.split={split} has a known class"
        raise UserError(f"{what}: evaluate on a split that has, or prepare the manifest with the classes of these")
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).round().astype(np.int64)]
    locations = [source.manifest.location(int(row)) for row in some]
    if not any(map(_is_there, locations)):
        what = f"evaluation.split={split}: {len(some)} of its {len(rows)} files were looked for, and none is there"
        raise UserError(f"{what}; say with data.root where the videos are now:", locations)


def _is_there(location: str) -> bool:
    try:
        content.facts(location)
    except OSError:
        return False
    return True


def accuracies(method: nn.Module, source: Source, config: Config, alive: Callable[[], None]) -> dict[str, float]:
    """Share of the held-out videos that each student names right, by one view in the middle of each.

    As evaluation does it: in the run's precision, by running means of weights if there are any. A video that cannot be decoded
    counts as wrong. Nothing of the training changes: BatchNorm's statistics stay, and no random number is drawn. ``alive`` is
    called after every batch.
    """
    students: nn.ModuleDict = getattr(method, "averages", None) or method.students  # type: ignore[assignment]
    videos, size = held_out_videos(source), config.evaluation.batch_views or BATCH_VIEWS
    blocks = [videos[start : start + size] for start in range(0, len(videos), size)]

    def decode(block: Ints) -> Columns:
        middle = np.full(len(block), 0.5)
        return source.views(block, middle, middle)

    right = dict.fromkeys(students, 0)
    modes = {module: module.training for module in students.modules()}
    students.eval()
    try:
        for views in map_ahead(decode, blocks, ahead=num_cores()):
            for name in right:
                right[name] += _right(students[name], views, source, config, name)
            alive()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: number / len(videos) for name, number in right.items()}


@torch.no_grad()
def _right(student: nn.Module, views: Columns, source: Source, config: Config, name: str) -> int:
    clip = getattr(config, name).clip
    clips = torch.from_numpy(views[name]).to(next(student.parameters()).device)
    said = center_logits(student, clips, clip, config.train).argmax(dim=1).cpu().numpy()
    return int(((said == source.columns["label"][views["video"]]) & (views["reason"] == "")).sum())
