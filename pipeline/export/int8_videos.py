"""Chooses the real videos by which int8 programs are made, and those on which they are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.clips.source import VideoSource
from pipeline.config import override
from pipeline.errors import UserError
from pipeline.evaluation.protocol import collect_protocol, describe_protocol
from pipeline.export.check_clips import decode_middle_clips
from pipeline.manifest.verify import sample_evenly
from pipeline.saved_models.saved_run import SavedRun, has_own_data, open_other_data, open_run_source
from pipeline.seeds import Ints

CALIBRATION_VIDEOS = 64
"""By so many training videos the ranges of activations are found. Choice."""
MEASURED_VIDEOS = 400
"""On at most so many labeled videos, at even distances, int8 is measured. Choice: the sd of a share is at most 2.5 points."""


@dataclass(frozen=True)
class Int8Videos:
    """The videos by which int8 programs are made, and those on which they are measured.

    Of one data set no video is both; whether another one has files in common with the run's is not checked.
    """

    calibration: VideoSource
    """The run's own data."""
    calibration_rows: Ints
    source: VideoSource
    """Videos whose labels are classes of the run; -1 for others."""
    rows: Ints
    about: Mapping[str, Any]
    """``source``, ``fingerprint`` and ``split`` of the data; ``chosen_from``, the number of the split's usable videos; and
    ``protocol`` in a phrase."""


def find_int8_videos(run: SavedRun, words: Sequence[str]) -> Int8Videos:
    """Chooses training videos of the run to calibrate by, and labeled ones to measure on: of the evaluated split of the run's
    own data, or of the one manifest that the words name. Raises UserError."""
    try:
        own = open_run_source(run)
    except UserError as error:
        remedy = "--onnx-int8 finds the ranges of activations on the run's training videos, so it needs its data"
        raise UserError(f"{error}\n{remedy}") from None
    source, split = _open_labeled(run, words) if words else own, run.config.evaluation.split
    usable = source.find_evaluation_rows(split)
    labeled = usable[source.columns["label"][usable] >= 0]
    if not len(labeled):
        raise UserError(f"no {split} video of {source.manifest.path} has a label, by which --onnx-int8 measures accuracy")
    rows = sample_evenly(labeled, MEASURED_VIDEOS)
    training = own.manifest.find_training_rows()
    if source.manifest.fingerprint == own.manifest.fingerprint:
        training = np.setdiff1d(training, labeled)  # held-out ones, with evaluation.split=validation
    if not len(training):
        raise UserError(f"{own.manifest.path} has no training video by which --onnx-int8 can find the ranges of activations")
    one_clip = collect_protocol(run.config) | {"clips": 1, "crops": 1, "average": "probabilities"}
    about = {
        "source": source.manifest.source, "fingerprint": source.manifest.fingerprint, "split": split,
        "chosen_from": len(labeled), "protocol": describe_protocol({"protocol": one_clip, "step": run.step}),
    }  # fmt: skip
    return Int8Videos(own, sample_evenly(training, CALIBRATION_VIDEOS), source, rows, about)


def decode_calibration_clips(videos: Int8Videos) -> list[dict[str, torch.Tensor]]:
    """Decodes the middle clips of the videos to calibrate by, up to 8 at once. Raises UserError if none can be decoded."""
    reasons: list[str] = []
    batches = [clips for _, clips in decode_middle_clips(videos.calibration, videos.calibration_rows, reasons)]
    if not batches:
        raise UserError("none of the training videos by which --onnx-int8 finds ranges can be decoded:", reasons[:5])
    return batches


def _open_labeled(run: SavedRun, words: Sequence[str]) -> VideoSource:
    """Opens the manifest of ``--check-on``; labels are the run's classes of the same names."""
    if len(words) > 1 or not words[0].endswith(".parquet"):
        what = "--onnx-int8 measures accuracy on labeled videos, so --check-on must be one manifest (.parquet)"
        raise UserError(f"{what}, not {' '.join(words)}")
    config = override(run.config.model_dump(mode="json"), ["data.root=null", f"data.manifest={words[0]}"], source="--check-on")
    other = replace(run, config=config.with_absolute_paths(), moved=True)
    return open_run_source(other) if has_own_data(other) else open_other_data(other).source
