"""Finds real clips on which an exported program is compared with the networks that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.errors import UserError
from pipeline.export.network_programs import decode_test_clips
from pipeline.lifecycle.saved_run import SavedRun, open_file_source, open_run_source
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
        remedy = "--torch-export compares what it writes on real clips: name videos with --check-on FILE"
        raise UserError(f"{error}\n{remedy}") from None
    return decode_test_clips(source, rows[:MOST_CLIPS].tolist())
