"""Frame sampling by time, not by frame number: 8 frames at 8 fps are the same seconds of a 25 and a 59.94 fps video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.clips.seeds import Floats, Ints
from pipeline.config import ClipSection

Moment = float | tuple[float, ...]
"""Where in time clips lie, 0 to 1: one for all students, or one for each."""
SLACK = 1e-6
"""Seconds by which a frame counts as earlier: 0.2 * 25 is 5.000000000000001 or 4.999999999999999, as it was computed."""


def clip_times(moment: Moment, start: float, end: float, clips: Sequence[ClipSection]) -> list[Floats]:
    """Times in seconds of each student's frames, [T] each; of one moment, all clips are centered on it.

    ``moment`` in [0, 1] places the longest clip between ``start`` and ``end``: 0 begins at start, 1 ends at end. A clip
    longer than that is centered on the middle; its outer frames repeat the first or last frame in between.
    With a moment for each student, each clip is placed for itself.
    Frame k of T stands for the k-th of T equal parts of the clip's T / fps seconds, at its middle. Choice: the paper is silent.
    """
    lengths = [clip.frames / clip.fps for clip in clips]
    if isinstance(moment, tuple):
        centers = [_center(one, start, end, length) for one, length in zip(moment, lengths, strict=True)]
    else:
        centers = [_center(moment, start, end, max(lengths))] * len(clips)
    times = [
        center + (np.arange(clip.frames) - (clip.frames - 1) / 2) / clip.fps
        for center, clip in zip(centers, clips, strict=True)
    ]
    return [np.asarray(np.clip(each, start, end - 2 * SLACK), dtype=np.float64) for each in times]


def _center(moment: float, start: float, end: float, length: float) -> float:
    slack = end - start - length
    return start + length / 2 + moment * slack if slack > 0 else (start + end) / 2


def frame_indices(times: Floats, frame_starts: Floats) -> Ints:
    """Index of the frame on screen at each time, given the sorted presentation times of all frames; ends are repeated."""
    indices = np.searchsorted(frame_starts, times + SLACK, side="right") - 1
    return np.asarray(np.clip(indices, 0, len(frame_starts) - 1), dtype=np.int64)


def constant_rate(frames: int, fps: float) -> Floats:
    """Presentation times of a constant frame rate, in seconds from the first frame."""
    return np.asarray(np.arange(frames) / fps)
