"""Measures a state of training on labeled videos kept from it; ``train.keep_best`` chooses checkpoints by that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from pipeline.clips.source import Columns, VideoSource
from pipeline.config import Config
from pipeline.errors import UserError, list_first
from pipeline.manifest.verify import find_missing_files, sample_evenly
from pipeline.methods import Method
from pipeline.methods.parts.precision import center_logits
from pipeline.processes.isolation import count_cores
from pipeline.seeds import Ints
from pipeline.stream.in_process import map_ahead

BATCH_VIEWS = 8
"""Videos at once where ``evaluation.batch_views`` is not set. Few, because a GPU holds the whole training beside them."""


def find_held_out_videos(source: VideoSource) -> Ints:
    """Finds the manifest rows of the validation split whose labels are known. Raises UserError if there are none."""
    rows = source.find_evaluation_rows("validation")
    known: Ints = rows[source.columns["label"][rows] >= 0]
    if len(known) == 0:
        raise UserError(f"no validation video of {source.manifest.path} has a label: keep some with jobs.label --hold-out 10%")
    return known


def check_held_out(source: VideoSource, config: Config) -> None:
    """Raises UserError if ``train.keep_best`` has nothing to choose by."""
    if config.train.keep_best:
        try:
            find_held_out_videos(source)
        except UserError as error:
            best = config.train.keep_best
            raise UserError(f"train.keep_best={best} needs held-out videos: {error}; or set it to 0") from None


def check_evaluation_videos(source: VideoSource, config: Config) -> None:
    """Raises UserError if the evaluation after the last step would have no video, or none of a known class."""
    split = config.evaluation.split
    rows = source.find_evaluation_rows(split)
    if _count_labeled(source, rows):
        return
    what = f"none of the {len(rows)} videos of {source.manifest.path} in evaluation.split={split} has a known class"
    validation = source.held_out if len(source.held_out) else source.manifest.find_usable_rows("val")
    correct = "correct the labels of these videos and prepare the data again"
    if split == "test" and (count := _count_labeled(source, validation)):
        raise UserError(f"{what}: evaluate on the {count} labeled validation videos, evaluation.split=validation, or {correct}")
    held = "evaluate on labeled training videos that jobs.label --hold-out 10% keeps apart, evaluation.split=validation"
    raise UserError(f"{what}: {correct}, or {held}")


def _count_labeled(source: VideoSource, rows: Ints) -> int:
    """Counts the rows that have a known class."""
    return int(pc.sum(pc.greater_equal(source.manifest.table["label"].take(pa.array(rows)), 0)).as_py() or 0)


def note_missing_files(source: VideoSource, config: Config, required: bool) -> list[str]:
    """Looks for a sample of the evaluated files, as this process sees them, and returns a note if some are missing.

    Raises UserError if none of the sample is there, ``required`` is set, and this process will be the one that reads them:
    with ``scale.workers`` above 0 others do, which may see other disks.
    """
    split, rows = config.evaluation.split, source.find_evaluation_rows(config.evaluation.split)
    sample = sample_evenly(rows)
    missing = find_missing_files(source.manifest, sample)
    if not missing:
        return []
    looked = f"evaluation.split={split}: {len(sample)} of its {len(rows)} files were looked for"
    if len(missing) < len(sample):
        remote = ", unless workers see them" if config.scale.workers > 0 else ""
        what = f"{len(missing)} are not there and count in no accuracy{remote}"
        return [f"{looked}, {what}; the first: {missing[0]}"]
    what, remedy = f"{looked}, and none is there", "say with data.root where the videos are now"
    if config.scale.workers > 0:
        return [f"{what}, as this process sees it; if workers do not see them either, {remedy}; the first: {missing[0]}"]
    if required:
        raise UserError(f"{what}; {remedy}:", list_first(missing))
    return [f"{what}; a run would be refused: {remedy}; the first: {missing[0]}"]


def measure_accuracies(method: Method, source: VideoSource, config: Config, show_alive: Callable[[], None]) -> dict[str, float]:
    """Measures the share of the held-out videos that each student classifies correctly from one view in their middle.

    As in evaluation, it is computed in the run's precision, and with the running means of weights if there are any. A video
    that cannot be decoded counts as wrong. Nothing of the training changes: BatchNorm's statistics stay as they are, and no
    random number is drawn. ``show_alive`` is called after every batch.
    """
    students = method.students if method.averages is None else method.averages
    videos, size = find_held_out_videos(source), config.evaluation.batch_views or BATCH_VIEWS
    blocks = [videos[start : start + size] for start in range(0, len(videos), size)]

    def decode(block: Ints) -> Columns:
        middle = np.full(len(block), 0.5)
        return source.decode_views(block, middle, middle)

    correct = dict.fromkeys(students, 0)
    modes = {module: module.training for module in students.modules()}
    students.eval()
    try:
        for views in map_ahead(decode, blocks, ahead=count_cores()):
            for name in correct:
                correct[name] += _count_correct(students[name], views, source, config, name)
            show_alive()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: number / len(videos) for name, number in correct.items()}


@torch.no_grad()
def _count_correct(student: nn.Module, views: Columns, source: VideoSource, config: Config, name: str) -> int:
    clip = getattr(config, name).clip
    clips = torch.from_numpy(views[name]).to(next(student.parameters()).device)
    predicted = center_logits(student, clips, clip, config.train).argmax(dim=1).cpu().numpy()
    return int(((predicted == source.columns["label"][views["video"]]) & (views["reason"] == "")).sum())
