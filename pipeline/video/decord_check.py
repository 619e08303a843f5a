"""Checking for each file whether decord returns its frames exactly, because decord's mistakes come without an error."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.video.container import FORMATS_WITH_TIMES, VideoIndex, VideoInput
from pipeline.video.exact_reader import FrameConverter, read_frames

try:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
except ImportError:  # it has no wheels for ARM: PyAV decodes everything there
    decord = None

__all__ = ["choose_frames_to_compare", "decord", "explain_decord_mismatch", "is_decord_exact"]

DECORD_FORMATS = {*FORMATS_WITH_TIMES, "avi"}
"""Container formats that decord may read exactly; files of others are left to PyAV without a check."""
MAX_DIFFERENCE = 6.0
"""Largest mean absolute difference, of 255, between two decoders' versions of one frame; color conversions differ by 0-2."""
NEIGHBOR_MARGIN = 0.3
"""By how much, of 255, a frame may resemble its neighbor more than itself: the noise of color conversions."""
COMPARED_KEY_FRAMES = 4
"""Key frames, evenly spread, around which a quick probe compares frames."""
CHUNK = 64
"""Frames in memory at once in a full probe."""


def choose_frames_to_compare(index: VideoIndex) -> list[int]:
    """Chooses the indices of frames to compare: the first, the middle and the last, some key frames, and neighbors of all.

    Key frames are where a wrong seek shows first.
    """
    count = len(index.times)
    inner = [key for key in index.key_frames if 0 < key < count]
    keys = [inner[len(inner) * n // COMPARED_KEY_FRAMES] for n in range(COMPARED_KEY_FRAMES)] if inner else []
    centers = {0, count // 2, count - 1, *keys}
    return sorted({i for center in centers for i in range(center - 2, center + 2) if 0 <= i < count})


def is_decord_exact(source: VideoInput, index: VideoIndex, frames: Mapping[int, NDArray[np.uint8]], full: bool) -> bool:
    """Whether decord returns the same frame count, frame times and pixels as PyAV.

    Compares the pixels of ``frames``, PyAV's frames by frame index, and those of all frames if ``full``.
    """
    if decord is None:
        return False
    try:
        if not _has_same_times(_open(source), index) or not _has_same_frames(source, frames):
            return False
        for start in range(0, len(index.times), CHUNK) if full else ():
            chunk = range(max(0, start - 1), min(start + CHUNK + 1, len(index.times)))
            if not _has_same_frames(source, read_frames(source, index, chunk, FrameConverter())):
                return False
    except Exception:  # decord raises types of its own; whatever it is, PyAV has read this file
        return False
    return True


def explain_decord_mismatch(source: VideoInput, index: VideoIndex, name: str) -> str:
    """Explains in a few words why ``is_decord_exact`` is False; ``name`` is the container format."""
    if decord is None:
        return "not installed"
    if name not in DECORD_FORMATS or not index.is_simple:
        return f"{name} with an open GOP or an edit list" if name in FORMATS_WITH_TIMES else f"format {name}"
    try:
        has_same_times = _has_same_times(_open(source), index)
    except Exception as error:
        return f"{type(error).__name__}"
    return "different pixels" if has_same_times else "different frame count or times"


def _open(source: VideoInput) -> decord.VideoReader:
    if not isinstance(source, str):
        source.seek(0)
        source = io.BytesIO(source.read())
    return decord.VideoReader(source, num_threads=1)


def _has_same_times(reader: decord.VideoReader, index: VideoIndex) -> bool:
    if len(reader) != len(index.times):
        return False
    times = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    return bool(np.abs(times - times[0] - index.times).max() <= 0.25 * index.times[-1] / len(times))


def _has_same_frames(source: VideoInput, frames: Mapping[int, NDArray[np.uint8]]) -> bool:
    """Whether a new decord reader's batch of these frames has the pixels of PyAV's frames."""
    frame_indices = sorted(frames)
    images = _open(source).get_batch(frame_indices).asnumpy()
    return all(_is_frame(image, i, frames) for i, image in zip(frame_indices, images, strict=True))


def _is_frame(image: NDArray[np.uint8], frame_index: int, frames: Mapping[int, NDArray[np.uint8]]) -> bool:
    """Whether an image is like the frame of this index, and not clearly more like one of its neighbors."""
    if image.shape != frames[frame_index].shape:
        return False
    difference = _difference(image, frames[frame_index])
    neighbors = [_difference(image, frames[i]) for i in (frame_index - 1, frame_index + 1) if i in frames]
    return difference <= min([MAX_DIFFERENCE, *(neighbor + NEIGHBOR_MARGIN for neighbor in neighbors)])


def _difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    # every other pixel of both sides: a quarter of the work, and as telling
    return float(np.abs(first[::2, ::2].astype(np.int16) - second[::2, ::2]).mean())
