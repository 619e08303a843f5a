"""Videos as people see them on the labeling page: an animation of the whole video, and a hash that finds near-duplicates."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips.decode import DecodeError, UInt8s, Video, decode_moments
from pipeline.clips.sampling import FramesAtRate
from pipeline.processes.isolation import ProcessFailure, map_in_processes

FRAMES, SIDE = 16, 144
"""Frames of an animation, evenly spaced over the video, and their shorter side in pixels: about 40 KB a video."""
MAX_FRAME_MS = 250
"""A frame is shown for its share of the video's length, but not longer: long videos are shown faster than they are."""
MAX_DIFFERING_BITS = 19
"""Most bits, of 192, in which the hashes of copies differ: a tenth. Compression, size and length change few of them."""
MIN_STEP, MIN_STEPS = 4, 48
"""A hash says something if at least so many of its 192 places differ from the place to their right by so many gray levels of
255. Dark and flat videos have fewer: all of them would look like copies of each other."""

MOTION_SIDE = 16
"""Pixels in height and width of the gray frames whose changes are compared."""
STILL = 4
"""Gray levels of 255: where no place ever changes by more from one frame to the next, nothing moves."""
MIN_MOTION_CORRELATION = 0.8
"""Least correlation of the changes of copies. Of 300 surveillance clips no two reach it, of 861 depth clips of one camera 58
reach it with an earlier one, repetitions of an action; by their hashes alone 42 and 854 would be copies."""


@dataclass(frozen=True)
class SmallClip:
    """An animation of a video."""

    image: str
    """A ``data:image/webp`` URI; "" if ``problem`` says why there is none."""
    bits: NDArray[np.bool_]
    """[192] hash of what the first, middle and last frame show; empty if they show too little to tell videos apart."""
    motion: NDArray[np.float16] = field(default_factory=lambda: np.zeros(0, np.float16))
    """[15 * 16 * 16] changes of the gray places from frame to frame, of length 1; empty if nothing moves."""
    problem: str = ""


def decode_small_clips(videos: Sequence[Video], timeout_seconds: float = 60.0) -> Iterator[tuple[int, SmallClip]]:
    """Decodes the videos in other processes, which may crash or hang; yields (index, clip) in the order in which they are done.

    Abandon it by ``close()`` where the rest is not needed.
    """
    for index, result in map_in_processes(decode_small_clip, videos, timeout_seconds=timeout_seconds):
        failed = isinstance(result, ProcessFailure)
        yield index, SmallClip("", np.zeros(0, np.bool_), problem=result.reason) if failed else result


def decode_small_clip(video: Video) -> SmallClip:
    """Decodes one video, whole frames of ``FRAMES`` moments."""
    clip = FramesAtRate(FRAMES, None)
    try:
        frames_NHWC, (shown, _) = decode_moments(video, [0.5], (clip, clip), SIDE)
    except DecodeError as error:
        return SmallClip("", np.zeros(0, np.bool_), problem=str(error) or "it does not decode")
    frames = frames_NHWC[shown[0]]
    bits = compute_difference_hash(frames[[0, len(frames) // 2, -1]])
    animation = encode_animation(frames, 1000 * (video.end - video.start) / len(frames))
    return SmallClip(animation, bits, compute_motion(frames))


def compute_difference_hash(frames_NHWC: UInt8s) -> NDArray[np.bool_]:
    """Computes 64 bits a frame: for 8 x 8 places of the gray frame, whether it is brighter than the place to its right.

    Returns no bits if too few places differ from each other, as in dark and flat videos.
    """
    images = [Image.fromarray(frame).convert("L").resize((9, 8), Image.Resampling.BOX) for frame in frames_NHWC]
    gray = np.stack([np.asarray(image, np.int16) for image in images])
    steps = (gray[:, :, :-1] - gray[:, :, 1:]).ravel()
    tells = int((np.abs(steps) >= MIN_STEP).sum()) >= MIN_STEPS
    return np.asarray(steps > 0) if tells else np.zeros(0, np.bool_)


def compute_motion(frames_NHWC: UInt8s) -> NDArray[np.float16]:
    """Computes how 16 x 16 places of the gray frame change from frame to frame: (N - 1) * 256 values, of length 1 together.

    Returns no values if nothing moves.
    """
    side = (MOTION_SIDE, MOTION_SIDE)
    images = [Image.fromarray(frame).convert("L").resize(side, Image.Resampling.BOX) for frame in frames_NHWC]
    changes = np.diff(np.stack([np.asarray(image, np.float32) for image in images]), axis=0).ravel()
    if not len(changes) or np.abs(changes).max() < STILL:
        return np.zeros(0, np.float16)
    return np.asarray(changes / np.linalg.norm(changes), np.float16)


class NearDuplicates:
    """Videos, and whether another one is a copy: it looks the same in its first, middle and last frames, and moves alike.

    Looks alone would make copies of all videos of a fixed camera. Where nothing moves in both, looks have to do.
    """

    def __init__(self) -> None:
        self._known: list[SmallClip] = []

    def add(self, clips: Iterable[SmallClip]) -> None:
        """Adds videos; those without a hash are near-duplicates of none."""
        self._known += [replace(clip, image="") for clip in clips if len(clip.bits)]

    def has(self, clip: SmallClip) -> bool:
        """Returns whether the video is a copy of one that was added."""
        if not len(clip.bits) or not self._known:
            return False
        differing = (np.stack([known.bits for known in self._known]) != clip.bits).sum(axis=1)
        return any(_move_alike(self._known[index], clip) for index in np.flatnonzero(differing <= MAX_DIFFERING_BITS))


def _move_alike(one: SmallClip, other: SmallClip) -> bool:
    if len(one.motion) != len(other.motion):
        return False
    correlation = np.dot(one.motion.astype(np.float32), other.motion.astype(np.float32))
    return not len(one.motion) or bool(correlation >= MIN_MOTION_CORRELATION)


def encode_animation(frames_NHWC: UInt8s, frame_ms: float, quality: int = 60) -> str:
    """Encodes RGB frames as an animated WebP that repeats, as a data URI."""
    images = [Image.fromarray(frame) for frame in frames_NHWC]
    buffer = io.BytesIO()
    duration = max(20, round(min(frame_ms, MAX_FRAME_MS)))
    images[0].save(
        buffer, "WEBP", save_all=True, append_images=images[1:], duration=duration, loop=0, quality=quality, method=2
    )
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
