"""Samples frames by time, not by frame number: 8 frames at 8 fps cover one second of a 25 and of a 59.94 fps video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.seeds import Floats, Ints

Moment = float | tuple[float | tuple[float, ...], ...]
"""Where in time clips lie: a number from 0 to 1 for all students, or one for each student. A clip of segments may have one for
each of its frames."""
SLACK = 1e-6
"""Seconds by which frames count as earlier, because 0.2 * 25 may come out as 5.000000000000001 or 4.999999999999999."""


class SampledClip(Protocol):
    """What decoding must know of a clip. A ``ClipSection`` has it; its module takes longer to import than all of decoding."""

    @property
    def frames(self) -> int:
        """The number of frames."""

    @property
    def fps(self) -> float | None:
        """Frames per second; None if they are spread over the whole video."""


@dataclass(frozen=True)
class FramesAtRate:
    """A ``SampledClip`` with nothing else, to send to a process that decodes."""

    frames: int
    fps: float | None


def compute_clip_times(moment: Moment, start: float, end: float, clips: Sequence[SampledClip]) -> list[Floats]:
    """Computes the times in seconds of each student's frames, [T] ascending, between ``start`` and ``end`` of the video.

    **Windows.** ``moment`` in [0, 1] places the longest window between ``start`` and ``end``: 0 begins at start, 1 ends at end.
    All windows are centered on it, unless there is a moment for each student: then each window is placed for itself. One that
    is longer than the video is centered on its middle; its outer frames repeat the first or last frame in between. Frame k of
    T stands for the k-th of T equal parts of the window's T / fps seconds, at its middle. Choice: the paper is silent.

    **Segments** (TSN: Wang et al., ECCV 2016). Frame k of T is what is on screen in the k-th of T equal parts of the video, at
    ``moment`` of the part: 0 is its start, 0.5 its middle. With a moment for each frame, each part has its own. Of a video
    with fewer frames than parts, frames repeat.
    """
    moments = moment if isinstance(moment, tuple) else (moment,) * len(clips)
    longest = max((clip.frames / clip.fps for clip in clips if clip.fps is not None), default=0.0)
    times = []
    for student_moment, clip in zip(moments, clips, strict=True):
        if clip.fps is None:
            times.append(start + (np.arange(clip.frames) + np.asarray(student_moment)) * ((end - start) / clip.frames))
        else:
            assert not isinstance(student_moment, tuple), "a window lies at one moment"
            length = clip.frames / clip.fps if isinstance(moment, tuple) else longest
            center = _compute_center(student_moment, start, end, length)
            times.append(center + (np.arange(clip.frames) - (clip.frames - 1) / 2) / clip.fps)
    return [np.asarray(np.clip(seconds, start, end - 2 * SLACK), dtype=np.float64) for seconds in times]


def select_moment(moment: Moment, student: int) -> Moment:
    """Selects the moment of one student's clip."""
    return (moment[student],) if isinstance(moment, tuple) else moment


def describe_clip(clip: SampledClip) -> str:
    """Describes in words what a clip covers."""
    if clip.fps is None:
        return f"the whole video in {clip.frames} part{'s' * (clip.frames > 1)}, a frame of each"
    return f"{clip.frames} frame{'s' * (clip.frames > 1)} at {clip.fps:g} fps ({clip.frames / clip.fps:.3g} s)"


def _compute_center(moment: float, start: float, end: float, length: float) -> float:
    slack = end - start - length
    return start + length / 2 + moment * slack if slack > 0 else (start + end) / 2


def find_frames(times: Floats, frame_starts: Floats) -> Ints:
    """Finds the index of the frame on screen at each time, given the sorted start times of all frames. Times before the first
    and after the last frame show these."""
    indices = np.searchsorted(frame_starts, times + SLACK, side="right") - 1
    return np.asarray(np.clip(indices, 0, len(frame_starts) - 1), dtype=np.int64)


def compute_frame_starts(frames: int, fps: float) -> Floats:
    """Computes when each frame of a video of constant rate is first shown, in seconds from the first frame."""
    return np.asarray(np.arange(frames) / fps)
