"""Exact access to a file's frames by PyAV: what the packets say, where to seek, and the pixels of single frames.

Formats differ in what can be believed. MP4 and Matroska tell every frame's time in their packets; AVI packets lie about
it, and transport streams cannot be sought exactly, so there frames are counted by decoding from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.schema import Status

INDEXED = {"mov", "matroska"}
"""Formats whose packets tell the times of the frames."""
STILL = {"image2", "tty", "lrc"}
"""Formats that FFmpeg opens though they hold a picture or a text."""


class UnusableError(Exception):
    """The file cannot be used; ``status`` is the manifest's word for it and the text its reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


@dataclass(frozen=True)
class FrameIndex:
    """Frames of a file in order of presentation."""

    times: NDArray[np.float64]
    """[n] seconds from the first frame."""
    pts: tuple[int, ...]
    """[n] timestamps; empty where frames were counted."""
    keys: tuple[int, ...]
    """Places of key frames, ascending; none where frames were counted."""
    codec: str
    format: str
    simple: bool
    """No edit list discards packets, and no frame that is shown before a key frame follows it in the file (open GOP)."""


def open_container(path: str) -> Any:
    """The opened file. Raises UnusableError for what is no video."""
    try:
        container = av.open(path)
    except av.FFmpegError as error:
        with open(path, "rb") as file:
            head = file.read(16)
        if b"ftyp" in head or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF"):
            raise UnusableError("truncated", f"begins like a video, but the rest is missing ({first_line(error)})") from None
        raise UnusableError("not_a_video", "no known video format") from None
    name = format_name(container)
    if name in STILL or name.endswith("_pipe"):
        container.close()
        raise UnusableError("not_a_video", f"a picture or a text ({name})")
    return container


def format_name(container: Any) -> str:
    """FFmpeg's first name of the format: mov, matroska, avi, mpegts."""
    return str(container.format.name.split(",")[0])


def video_stream(container: Any) -> Any:
    """The first video stream that is no cover picture. Raises UnusableError when there is none that can be decoded."""
    if not container.streams:
        raise UnusableError("truncated", "begins like a video, but holds no streams")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({"cover picture" if s.type == "video" else s.type for s in container.streams})
        raise UnusableError("no_video_stream", f"holds only {' and '.join(kinds)}")
    if streams[0].codec_context is None:
        raise UnusableError("unsupported_codec", "this FFmpeg has no decoder for its video stream")
    return streams[0]


def read_index(path: str) -> FrameIndex:
    """Count and times of all frames. Raises UnusableError, or av.FFmpegError for damage that stops the reading."""
    with open_container(path) as container:
        stream = video_stream(container)
        codec, name = stream.codec_context.codec.canonical_name, format_name(container)
        if name not in INDEXED:
            return FrameIndex(_count_frames(container, stream), (), (), codec, name, True)
        packets = [packet for packet in container.demux(stream) if packet.size]
        if stream.frames > len(packets):
            raise UnusableError("truncated", f"{len(packets)} frames of the {stream.frames} that its header promises")
        shown = sorted((p.pts, p.is_keyframe) for p in packets if not p.is_discard and p.pts is not None)
        pts = tuple(time for time, _ in shown)
        times = np.array([float((time - pts[0]) * stream.time_base) for time in pts])
        keys = tuple(place for place, (_, key) in enumerate(shown) if key)
        simple = len(shown) == len(packets) and not _has_leading(packets)
        return FrameIndex(times, pts, keys, codec, name, simple)


def _has_leading(packets: Sequence[Any]) -> bool:
    key = None
    for packet in packets:
        if packet.is_keyframe:
            key = packet.pts
        elif key is not None and packet.pts is not None and packet.pts < key:
            return True
    return False


def _count_frames(container: Any, stream: Any) -> NDArray[np.float64]:
    """[n] seconds of the frames that decode; by number and rate where the file's own times do not rise."""
    told = [frame.time for frame in container.decode(stream)]
    if None in told or len(told) < 2:
        return np.arange(len(told)) / float(stream.guessed_rate or stream.average_rate or 25)
    times = np.array(told, np.float64)
    if (np.diff(times) > 0).all():
        return np.asarray(times - times[0])
    # B-frames in AVI: the right times in a wrong order; a header's rate may count fields
    return np.asarray(np.arange(len(times)) * np.median(np.diff(np.unique(times))))


def decode_frames(path: str, index: FrameIndex, places: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Upright RGB frames [H, W, 3] at ascending places. Raises UnusableError when one does not decode."""
    try:
        found = _by_time(path, index, places) if index.pts else _by_number(path, places)
    except av.FFmpegError as error:
        raise UnusableError("undecodable", first_line(error)) from None
    if lost := [place for place in places if place not in found]:
        raise UnusableError("undecodable", f"frame {lost[0]} of {len(index.times)} does not decode")
    return [found[place] for place in places]


def _by_number(path: str, places: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    with open_container(path) as container:
        frames = enumerate(container.decode(video_stream(container)))
        return {place: _upright(frame) for place, frame in frames if place in places}


def _by_time(path: str, index: FrameIndex, places: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Decode on from place to place, and seek only where a key frame lies between."""
    found: dict[int, NDArray[np.uint8]] = {}
    with open_container(path) as container:
        stream = video_stream(container)
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
    return np.asarray(np.rot90(image, round((getattr(frame, "rotation", 0) or 0) / 90) % 4))


def first_line(error: BaseException) -> str:
    """An error's text, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
