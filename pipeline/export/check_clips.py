"""Finds real clips on which an exported program is compared with the networks that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline.clips.decode import DecodeError
from pipeline.clips.source import VideoSource
from pipeline.errors import UserError
from pipeline.lifecycle.saved_run import SavedRun, open_file_source, open_run_source
from pipeline.methods import STUDENTS
from pipeline.prediction.file_manifest import make_manifest
from pipeline.prediction.input_videos import list_inputs

MOST_CLIPS = 8


def find_check_clips(run: SavedRun, words: Sequence[str]) -> dict[str, torch.Tensor]:
    """Decodes up to 8 clips, [N, T, S, S, 3] uint8 by network, of the videos that the words name; without words, of the run's
    test videos. Raises UserError if there are none."""
    if words:
        manifest = make_manifest(list_inputs(words)[:MOST_CLIPS], run.classes)
        rows = manifest.find_usable_rows("test")
        if not len(rows):
            raise UserError(f"none of the videos of --check-on can be used: {manifest.table['reason'][0]}")
        return decode_test_clips(replace(open_file_source(run), manifest=manifest), rows.tolist())
    try:
        source = open_run_source(run)
        rows = source.find_evaluation_rows(run.config.evaluation.split)
    except UserError as error:
        remedy = "exported programs are compared on real clips: name videos with --check-on FILE"
        raise UserError(f"{error}\n{remedy}") from None
    return decode_test_clips(source, rows[:MOST_CLIPS].tolist())


def decode_test_clips(source: VideoSource, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """Decodes the middle clip of each of these videos of a source, [N, T, S, S, 3] uint8 by network; others are left out.

    Raises UserError if none can be decoded.
    """
    size = source.size
    found: dict[str, list[torch.Tensor]] = {name: [] for name in STUDENTS}
    reasons = []
    for row in rows:
        out = tuple(np.zeros((clip.frames, size, size, 3), np.uint8) for clip in source.clips)
        try:
            source.decode_clips(int(row), 0.5, 0.5, (out[0], out[1]))
        except DecodeError as error:
            reasons.append(f"{source.manifest.locate(row)}: {error}")
            continue
        for name, clip in zip(STUDENTS, out, strict=True):
            found[name].append(torch.from_numpy(clip))
    if not found["primary"]:
        raise UserError("none of the videos to check the exported programs with can be decoded:", reasons[:5])
    return {name: torch.stack(clips) for name, clips in found.items()}
