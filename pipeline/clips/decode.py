"""One open and one pass per video: the union of the frames that all students need, as uint8 at decode size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av
import decord
import numpy as np
import numpy.typing as npt

from pipeline.clips.sampling import clip_times, constant_rate, frame_indices
from pipeline.clips.seeds import Floats, Ints
from pipeline.config import ClipSection

UInt8s = npt.NDArray[np.uint8]

decord.logging.set_level(decord.logging.FATAL)  # damaged files are reported by us, once, with their name


class DecodeError(Exception):
    """This video cannot give its frames; the text says why."""


@dataclass(frozen=True)
class Video:
    """What the decoder needs to know of a file, from the manifest."""

    location: str
    frames: int
    fps: float
    variable_fps: bool
    width: int
    height: int
    start: float
    """Seconds; 0 unless the source cuts the video."""
    end: float
    decoder: str
    """``decord``, or ``pyav`` where the probe found decord's frame times wrong."""


def decode_clips(video: Video, moment: float, window: float, clips: Sequence[ClipSection], size: int) -> tuple[UInt8s, ...]:
    """Decode every student's clip in one pass: [T, size, size, 3] uint8 each, in the order of ``clips``.

    The shorter side is scaled to ``size`` and a square window is cut at ``window`` (0..1) along the longer side. Raises
    DecodeError for anything wrong with the file, among them a frame count that is not the manifest's.
    """
    width, height = scaled_size(video.width, video.height, size)
    times = clip_times(moment, video.start, video.end, clips)
    read = _read_decord if video.decoder == "decord" else _read_pyav
    try:
        frames_NHWC, starts, wanted = read(video, times, width, height)
    except DecodeError:
        raise
    except Exception as error:  # decord and FFmpeg raise many types; all mean that this file failed
        raise DecodeError(f"{type(error).__name__}: {_first_line(error)}") from None
    left, top = round(window * (width - size)), round(window * (height - size))
    square = frames_NHWC[:, top : top + size, left : left + size]
    if square.shape[1:] != (size, size, 3):
        raise DecodeError(f"frames of {frames_NHWC.shape[2]}x{frames_NHWC.shape[1]} where {width}x{height} were asked for")
    return tuple(square[np.searchsorted(wanted, frame_indices(t, starts))] for t in times)


def scaled_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter side scaled to ``size``."""
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def _union(times: Sequence[Floats], starts: Floats) -> Ints:
    return np.unique(np.concatenate([frame_indices(t, starts) for t in times]))


def _read_decord(video: Video, times: Sequence[Floats], width: int, height: int) -> tuple[UInt8s, Floats, Ints]:
    reader = decord.VideoReader(video.location, width=width, height=height, num_threads=1)
    if len(reader) != video.frames:
        raise DecodeError(f"{len(reader)} frames, the manifest says {video.frames}: has the file changed?")
    if video.variable_fps:
        starts = np.asarray(reader.get_frame_timestamp(range(video.frames)), dtype=np.float64)[:, 0]
        starts = starts - starts[0]
    else:
        starts = constant_rate(video.frames, video.fps)
    wanted = _union(times, starts)
    return reader.get_batch(wanted).asnumpy(), starts, wanted


def _read_pyav(video: Video, times: Sequence[Floats], width: int, height: int) -> tuple[UInt8s, Floats, Ints]:
    """Decode from the first frame on: exact for every container, at the cost of the frames before the clip."""
    last = max(float(t.max()) for t in times)
    kept: list[UInt8s] = []
    starts: list[float] = []  # seconds since the first frame
    first = 0.0
    with av.open(video.location) as container:
        for number, frame in enumerate(container.decode(video=0)):
            seconds = number / video.fps if frame.pts is None else float(frame.time)
            first = seconds if number == 0 else first
            starts.append(seconds - first)
            kept.append(_upright(frame, width, height))
            if starts[-1] > last:
                break
    if not kept:
        raise DecodeError("no frame decodes")
    return np.stack(kept), np.asarray(starts), np.arange(len(kept))


def _upright(frame: av.VideoFrame, width: int, height: int) -> UInt8s:
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    size = (height, width) if turns % 2 else (width, height)
    return np.ascontiguousarray(np.rot90(frame.reformat(*size, format="rgb24").to_ndarray(), turns))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:200]
