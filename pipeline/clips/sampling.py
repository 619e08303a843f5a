"""Frame sampling by time, not by frame number: 8 frames at 8 fps are the same seconds of a 25 and a 59.94 fps video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.clips.seeds import Floats, Ints
from pipeline.config import ClipSection


def clip_times(moment: float, start: float, end: float, clips: Sequence[ClipSection]) -> list[Floats]:
    """Times in seconds of each student's frames, [T] each, all clips centered on the same moment.

    ``moment`` in [0, 1] places the longest clip between ``start`` and ``end``: 0 begins at start, 1 ends at end. A clip
    longer than that is centered on the middle; its outer frames repeat the first or last frame (see ``frame_indices``).
    Frame k of T stands for the k-th of T equal parts of the clip's T / fps seconds, at its middle. Choice: the paper is silent.
    """
    longest = max(clip.frames / clip.fps for clip in clips)
    slack = end - start - longest
    center = start + longest / 2 + moment * slack if slack > 0 else (start + end) / 2
    return [
        np.asarray(center + (np.arange(clip.frames) - (clip.frames - 1) / 2) / clip.fps, dtype=np.float64) for clip in clips
    ]


def frame_indices(times: Floats, frame_starts: Floats) -> Ints:
    """Index of the frame on screen at each time, given the sorted presentation times of all frames; ends are repeated."""
    # a microsecond's slack: 0.2 * 25 is 5.000000000000001 or 4.999999999999999 depending on how it was computed
    indices = np.searchsorted(frame_starts, times + 1e-6, side="right") - 1
    return np.asarray(np.clip(indices, 0, len(frame_starts) - 1), dtype=np.int64)


def constant_rate(frames: int, fps: float) -> Floats:
    """Presentation times of a constant frame rate, in seconds from the first frame."""
    return np.asarray(np.arange(frames) / fps)
