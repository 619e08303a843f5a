"""Does decord return a file's frames exactly? Asked for each file, because its mistakes come without an error."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.video.container import INDEXED, FrameIndex, Input
from pipeline.video.exact_reader import FrameConverter, read_frames

try:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
except ImportError:  # it has no wheels for ARM: PyAV decodes everything there
    decord = None

__all__ = ["decord", "decord_agrees", "decord_disagrees", "places_to_compare"]

MAX_DIFFERENCE = 6.0
"""Largest mean absolute difference, of 255, between two decoders' versions of one frame; conversions differ by 0-2."""
CLEARLY = 0.3
"""How much more a frame may resemble a neighbor than itself, of 255: the noise of conversions."""
NUM_KEYS = 4
"""Key frames in a quick probe around which frames are compared, spread evenly."""
CHUNK = 64
"""Frames in memory at once in a full probe."""


def places_to_compare(index: FrameIndex) -> list[int]:
    """First, middle and last frame, and those around some key frames, where seeking goes wrong first; with neighbors."""
    count = len(index.times)
    inner = [key for key in index.keys if 0 < key < count]
    keys = [inner[len(inner) * n // NUM_KEYS] for n in range(NUM_KEYS)] if inner else []
    centers = {0, count // 2, count - 1, *keys}
    return sorted({place for center in centers for place in range(center - 2, center + 2) if 0 <= place < count})


def decord_agrees(source: Input, index: FrameIndex, frames: Mapping[int, NDArray[np.uint8]], full: bool) -> bool:
    """Whether decord has the same count, times and pixels: of ``frames`` (by place), and of all if ``full``."""
    if decord is None:
        return False
    try:
        if not _same_times(_open(source), index) or not _same_frames(source, frames):
            return False
        for start in range(0, len(index.times), CHUNK) if full else ():
            places = range(max(0, start - 1), min(start + CHUNK + 1, len(index.times)))
            if not _same_frames(source, read_frames(source, index, places, FrameConverter())):
                return False
    except Exception:  # decord raises types of its own; whatever it is, PyAV has read this file
        return False
    return True


def decord_disagrees(source: Input, index: FrameIndex, name: str) -> str:
    """Why, in words for a table."""
    if decord is None:
        return "not installed"
    if name not in {*INDEXED, "avi"} or not index.simple:
        return f"{name} with an open GOP or an edit list" if name in INDEXED else f"format {name}"
    try:
        same = _same_times(_open(source), index)
    except Exception as error:
        return f"{type(error).__name__}"
    return "other pixels" if same else "other count or times"


def _open(source: Input) -> decord.VideoReader:
    if not isinstance(source, str):
        source = io.BytesIO(_whole(source))
    return decord.VideoReader(source, num_threads=1)


def _whole(source: io.BufferedIOBase) -> bytes:
    source.seek(0)
    return source.read()


def _same_times(reader: decord.VideoReader, index: FrameIndex) -> bool:
    if len(reader) != len(index.times):
        return False
    times = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    return bool(np.abs(times - times[0] - index.times).max() <= 0.25 * index.times[-1] / len(times))


def _same_frames(source: Input, frames: Mapping[int, NDArray[np.uint8]]) -> bool:
    """Each sought by a new reader's batch; like the exact one, and not clearly more like a neighbor."""
    places = sorted(frames)
    seen = _open(source).get_batch(places).asnumpy()
    return all(_is_frame(image, place, frames) for place, image in zip(places, seen, strict=True))


def _is_frame(image: NDArray[np.uint8], place: int, frames: Mapping[int, NDArray[np.uint8]]) -> bool:
    if image.shape != frames[place].shape:
        return False
    own = _distance(image, frames[place])
    others = [_distance(image, frames[near]) for near in (place - 1, place + 1) if near in frames]
    return own <= min([MAX_DIFFERENCE, *(other + CLEARLY for other in others)])


def _distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    # every other pixel of both sides: a quarter of the work, and as telling
    return float(np.abs(one[::2, ::2].astype(np.int16) - other[::2, ::2]).mean())
