"""Finds real clips on which exported programs are compared with the networks that they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline.clips.decode import DecodeError, UInt8s
from pipeline.clips.source import VideoSource
from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.prediction.file_manifest import make_manifest
from pipeline.prediction.input_videos import list_inputs
from pipeline.processes.isolation import count_cores
from pipeline.saved_models.saved_run import SavedRun, open_file_source, open_run_source
from pipeline.seeds import Ints
from pipeline.stream.in_process import map_ahead

MOST_CLIPS = 8
"""On so many clips each program is compared with the networks."""
BATCH = 8


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
    reasons: list[str] = []
    parts = [clips for _, clips in decode_middle_clips(source, np.asarray(rows, dtype=np.int64), reasons)]
    if not parts:
        raise UserError("none of the videos to check the exported programs with can be decoded:", reasons[:5])
    return {name: torch.cat([clips[name] for clips in parts]) for name in STUDENTS}


def decode_middle_clips(
    source: VideoSource, rows: Ints, reasons: list[str] | None = None
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Decodes the middle clip of these manifest rows, on all cores, and yields up to 8 rows with their clips, [n, T, S, S, 3]
    uint8 by network. Videos that cannot be decoded are left out; why is added to ``reasons``."""
    size = source.size

    def decode(row: int) -> tuple[int, Sequence[UInt8s], str]:
        out = tuple(np.zeros((clip.frames, size, size, 3), np.uint8) for clip in source.clips)
        try:
            source.decode_clips(row, 0.5, 0.5, (out[0], out[1]))
        except DecodeError as error:
            return row, (), f"{source.manifest.locate(row)}: {error}"
        return row, out, ""

    batch: list[tuple[int, Sequence[UInt8s]]] = []
    for row, clips, reason in map_ahead(decode, rows.tolist(), ahead=count_cores()):
        if reason:
            if reasons is not None:
                reasons.append(reason)
            continue
        batch.append((row, clips))
        if len(batch) == BATCH:
            yield _stack(batch)
            batch = []
    if batch:
        yield _stack(batch)


def _stack(batch: Sequence[tuple[int, Sequence[UInt8s]]]) -> tuple[list[int], dict[str, torch.Tensor]]:
    clips = {name: torch.from_numpy(np.stack([both[index] for _, both in batch])) for index, name in enumerate(STUDENTS)}
    return [row for row, _ in batch], clips
