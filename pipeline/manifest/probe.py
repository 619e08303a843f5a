"""What is in a video file, whether it decodes, and which decoder returns its frames exactly.

decord is fast, but on TS, MPEG-PS, WMV, edit lists, open GOPs and many AVIs it returns wrong frames without an error.
So it is trusted with a file only if its count and times agree with the packets, and sampled frames with PyAV's pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.isolation import Lost, map_isolated
from pipeline.manifest.progress import progress
from pipeline.manifest.schema import Decoder, Status

try:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
except ImportError:  # no wheels for ARM: PyAV decodes everything there
    decord = None

INDEXED = {"mov", "matroska"}
"""Containers whose packets tell the times of the frames; in all others frames are counted by decoding from the start."""
STILL = {"image2", "tty", "lrc"}
"""Formats that FFmpeg opens though they hold a picture or a text."""
MAX_DIFFERENCE = 6.0
"""Largest mean absolute difference, of 255, between two decoders' versions of one frame; conversions differ by 1-2."""


@dataclass(frozen=True)
class Probe:
    """One row's share of the manifest; numbers are 0 where the file is unusable."""

    frames: int = 0
    fps: float = 0.0
    variable_fps: bool = False
    duration: float = 0.0
    width: int = 0
    height: int = 0
    codec: str | None = None
    bytes: int = 0
    hash: str | None = None
    decoder: Decoder = "pyav"
    status: Status = "ok"
    reason: str | None = None


class _UnusableError(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


@dataclass(frozen=True)
class _Index:
    """Frames in order of presentation, as the container's packets tell them, or as counted by decoding."""

    times: NDArray[np.float64]
    """[n] seconds from the first frame."""
    pts: tuple[int, ...]
    """[n] timestamps; empty where frames were counted."""
    keys: tuple[int, ...]
    """Places of key frames that can be sought, ascending; 0 alone where frames were counted."""
    codec: str
    rate: float
    format: str
    plain: bool
    """No packet is discarded by an edit list."""


def probe_files(
    paths: Sequence[str], processes: int | None = None, timeout_seconds: float = 120.0, with_hash: bool = False
) -> list[Probe]:
    """Probe local files in worker processes; a file that crashes or hangs its process is undecodable, the rest goes on."""
    probes: dict[int, Probe] = {}
    work = map_isolated(partial(probe_file, with_hash=with_hash), paths, processes, timeout_seconds)
    for place, result in progress(work, len(paths), "probed"):
        if isinstance(result, Lost):
            result = Probe(bytes=os.path.getsize(paths[place]), status="undecodable", reason=result.reason)
        probes[place] = result
    return [probes[place] for place in range(len(paths))]


def probe_file(path: str, with_hash: bool = False) -> Probe:
    """Probe one local file. Never raises for what is in the file: ``status`` and ``reason`` say it."""
    size = 0
    try:
        size = _size(path)
        return _probe_video(path, size, _hash(path) if with_hash else None)
    except _UnusableError as error:
        return Probe(bytes=size, status=error.status, reason=str(error))
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        return Probe(bytes=size, status="undecodable", reason=f"{type(error).__name__}: {_first_line(error)}")


def _size(path: str) -> int:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        raise _UnusableError("missing", "no such file") from None
    if not stat.S_ISREG(facts.st_mode):
        raise _UnusableError("not_a_video", "not a file")
    if facts.st_size == 0:
        raise _UnusableError("empty", "0 bytes")
    return facts.st_size


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _probe_video(path: str, size: int, digest: str | None) -> Probe:
    index = _read_index(path)
    count = len(index.times)
    if count < 2:
        raise _UnusableError("too_short", f"{count} frame{'s' * (count != 1)}, at least 2 are needed to see a motion")
    places = _sample(index)
    frames = _decode_at(path, index, places)
    if len({frame.shape for frame in frames}) > 1:
        sizes = " and ".join(sorted({f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames}))
        raise _UnusableError("undecodable", f"the frame size changes within the file: {sizes}")
    fps = float((count - 1) / index.times[-1])
    variable = bool(np.abs(index.times * fps - np.arange(count)).max() > 0.5)
    height, width = frames[0].shape[:2]
    decoder: Decoder = "decord" if _decord_agrees(path, index, places, frames) else "pyav"
    return Probe(count, fps, variable, count / fps, width, height, index.codec, size, digest, decoder)


def _open(path: str) -> Any:
    try:
        container = av.open(path)
    except av.FFmpegError as error:
        with open(path, "rb") as file:
            head = file.read(64)
        if b"ftyp" in head[:16] or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF"):
            raise _UnusableError("truncated", f"begins like a video, but its index is missing ({_first_line(error)})") from None
        raise _UnusableError("not_a_video", "no known video format") from None
    name = container.format.name.split(",")[0]
    if name in STILL or name.endswith("_pipe"):
        container.close()
        raise _UnusableError("not_a_video", f"a picture or a text ({name})")
    return container


def _video_stream(container: Any) -> Any:
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
    if not streams:
        kinds = sorted({s.type for s in container.streams}) or ["no"]
        raise _UnusableError("no_video_stream", f"holds {' and '.join(kinds)} streams only")
    if streams[0].codec_context is None:
        raise _UnusableError("unsupported_codec", "this FFmpeg has no decoder for its video stream")
    return streams[0]


def _read_index(path: str) -> _Index:
    with _open(path) as container:
        stream = _video_stream(container)
        name = container.format.name.split(",")[0]
        codec, rate = stream.codec_context.codec.canonical_name, stream.average_rate or stream.guessed_rate or Fraction(25)
        if name not in INDEXED:
            times = _count_frames(container, stream, float(rate))
            return _Index(times, (), (0,), codec, float(rate), name, True)
        packets = [packet for packet in container.demux(stream) if packet.size]
        if stream.frames > len(packets):
            raise _UnusableError("truncated", f"{len(packets)} frames of the {stream.frames} that its header promises")
        shown = sorted((p.pts, p.is_keyframe) for p in packets if not p.is_discard and p.pts is not None)
        times = np.array([float(pts * stream.time_base) for pts, _ in shown])
        keys = tuple(place for place, (_, key) in enumerate(shown) if key)
        plain = len(shown) == len(packets)
        return _Index(times - times[:1], tuple(pts for pts, _ in shown), keys, codec, float(rate), name, plain)


def _count_frames(container: Any, stream: Any, rate: float) -> NDArray[np.float64]:
    """[n] seconds of frames in the order in which they decode; by number where the file's times are none."""
    told = [frame.time for frame in container.decode(stream)]
    if all(time is not None for time in told) and all(a < b for a, b in itertools.pairwise(told)):
        return np.array(told, np.float64) - np.array(told[:1], np.float64)
    return np.arange(len(told)) / rate


def _sample(index: _Index) -> list[int]:
    """First, middle and last frame, and those around a key frame in the middle, where open GOPs go wrong."""
    count = len(index.times)
    inner = [key for key in index.keys if 0 < key < count - 2]
    near = [inner[len(inner) // 2] + step for step in (-1, 0, 1)] if inner else []
    return sorted({0, count // 2, count - 1, *near})


def _decode_at(path: str, index: _Index, places: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Upright RGB frames at these places, by PyAV."""
    try:
        found = _by_number(path, places) if not index.pts else _by_time(path, index, places)
    except av.FFmpegError as error:
        raise _UnusableError("undecodable", _first_line(error)) from None
    lost = [place for place in places if place not in found]
    if lost:
        raise _UnusableError("undecodable", f"frame {lost[0]} of {len(index.times)} does not decode")
    return [found[place] for place in places]


def _by_number(path: str, places: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    with _open(path) as container:
        frames = enumerate(container.decode(_video_stream(container)))
        return {place: _upright(frame) for place, frame in frames if place in places}


def _by_time(path: str, index: _Index, places: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Decode on from frame to frame, and seek where a key frame lies between."""
    found: dict[int, NDArray[np.uint8]] = {}
    with _open(path) as container:
        stream = _video_stream(container)
        frames: Iterator[Any] = container.decode(stream)
        at = -1
        for place in places:
            key = max((key for key in index.keys if key <= place), default=0)
            if key > at + 1:
                container.seek(index.pts[key], stream=stream)
                frames = container.decode(stream)
            match = next((f for f in frames if f.pts is not None and f.pts >= index.pts[place]), None)
            if match is not None and match.pts == index.pts[place]:
                found[place] = _upright(match)
            at = place
    return found


def _upright(frame: Any) -> NDArray[np.uint8]:
    image = frame.to_ndarray(format="rgb24")
    return np.asarray(np.rot90(image, round((frame.rotation or 0) / 90) % 4))


def _decord_agrees(path: str, index: _Index, places: Sequence[int], frames: Sequence[NDArray[np.uint8]]) -> bool:
    if decord is None or not index.plain or index.format not in {*INDEXED, "avi"}:
        return False
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != len(index.times):
            return False
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
        if np.abs(times - times[0] - index.times).max() > 0.25 * index.times[-1] / len(times):
            return False
        seen = reader.get_batch(list(places)).asnumpy()
    except Exception:  # decord raises types of its own; whatever it is, PyAV read this file
        return False
    return all(_same(mine, other) for mine, other in zip(seen, frames, strict=True))


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return one.shape == other.shape and float(np.abs(one.astype(np.int16) - other).mean()) <= MAX_DIFFERENCE


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
