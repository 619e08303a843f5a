"""What is in a video file, whether it decodes, and which decoder returns its frames exactly.

decord is fast, but on TS, MPEG-PS, WMV, edit lists, open GOPs and many AVIs it returns wrong frames without an error.
So a file is left to it only if its packets are simple, its count and times agree with them, and so do sampled pixels.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.frames import INDEXED, FrameIndex, UnusableError, decode_frames, first_line, read_index
from pipeline.manifest.isolation import Lost, map_isolated
from pipeline.manifest.progress import progress
from pipeline.manifest.schema import Decoder, Status

try:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
except ImportError:  # it has no wheels for ARM: PyAV decodes everything there
    decord = None

MAX_DIFFERENCE = 6.0
"""Largest mean absolute difference, of 255, between two decoders' versions of one frame; conversions differ by 0-2."""


@dataclass(frozen=True)
class Probe:
    """One file's share of the manifest; numbers are 0 where it is unusable."""

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


def probe_files(
    paths: Sequence[str], processes: int | None = None, timeout_seconds: float = 120.0, with_hash: bool = False
) -> list[Probe]:
    """Probe local files in worker processes; a file that crashes or hangs its process is undecodable, the rest goes on."""
    probes: dict[int, Probe] = {}
    work = map_isolated(_probe_item, [(path, with_hash) for path in paths], processes, timeout_seconds)
    for place, result in progress(work, len(paths), "probed"):
        if isinstance(result, Lost):
            result = Probe(bytes=os.path.getsize(paths[place]), status="undecodable", reason=result.reason)
        probes[place] = result
    return [probes[place] for place in range(len(paths))]


def _probe_item(item: tuple[str, bool]) -> Probe:
    return probe_file(*item)


def probe_file(path: str, with_hash: bool = False) -> Probe:
    """Probe one local file. Never raises for what is in the file: ``status`` and ``reason`` say it."""
    size = 0
    try:
        size = _size(path)
        return _probe_video(path, size, _hash(path) if with_hash else None)
    except UnusableError as error:
        return Probe(bytes=size, status=error.status, reason=str(error))
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        return Probe(bytes=size, status="undecodable", reason=f"{type(error).__name__}: {first_line(error)}")


def _size(path: str) -> int:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        raise UnusableError("missing", "no such file") from None
    if not stat.S_ISREG(facts.st_mode):
        raise UnusableError("not_a_video", "not a file")
    if facts.st_size == 0:
        raise UnusableError("empty", "0 bytes")
    return facts.st_size


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _probe_video(path: str, size: int, digest: str | None) -> Probe:
    index = read_index(path)
    count = len(index.times)
    if count < 2:
        raise UnusableError("too_short", f"{count} frame{'s' * (count != 1)}, at least 2 are needed to see a motion")
    if index.times[-1] <= 0:
        raise UnusableError("undecodable", "all frames have the same time")
    places = _sample(index)
    frames = decode_frames(path, index, places)
    if len({frame.shape for frame in frames}) > 1:
        sizes = sorted({f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames})
        raise UnusableError("undecodable", f"the frame size changes within the file: {' and '.join(sizes)}")
    fps = float((count - 1) / index.times[-1])
    variable = bool(np.abs(index.times * fps - np.arange(count)).max() > 0.5)
    height, width = frames[0].shape[:2]
    decoder: Decoder = "decord" if _decord_agrees(path, index, places, frames) else "pyav"
    return Probe(count, fps, variable, count / fps, width, height, index.codec, size, digest, decoder)


def _sample(index: FrameIndex) -> list[int]:
    """First, middle and last frame, and those around a key frame in the middle, where seeking goes wrong first."""
    count = len(index.times)
    inner = [key for key in index.keys if 0 < key < count - 2]
    near = [inner[len(inner) // 2] + step for step in (-1, 0, 1)] if inner else []
    return sorted({0, count // 2, count - 1, *near})


def _decord_agrees(path: str, index: FrameIndex, places: Sequence[int], frames: Sequence[NDArray[np.uint8]]) -> bool:
    if decord is None or not index.simple or index.format not in {*INDEXED, "avi"}:
        return False
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != len(index.times):
            return False
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
        if np.abs(times - times[0] - index.times).max() > 0.25 * index.times[-1] / len(times):
            return False
        seen = reader.get_batch(list(places)).asnumpy()
    except Exception:  # decord raises types of its own; whatever it is, PyAV has read this file
        return False
    return all(_same(mine, other) for mine, other in zip(seen, frames, strict=True))


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return one.shape == other.shape and float(np.abs(one.astype(np.int16) - other).mean()) <= MAX_DIFFERENCE
