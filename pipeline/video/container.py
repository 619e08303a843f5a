"""What a video file holds, by PyAV: its stream, its frames in order of presentation, and where decoding may begin.

Formats differ in what can be believed. MP4 and Matroska tell every frame's time in their packets; AVI packets lie about
it, and transport streams cannot be sought exactly, so there frames are counted by decoding from the start.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.video.status import Status

Input = str | io.BufferedIOBase
"""A local path, or a seekable file."""

INDEXED = {"mov", "matroska"}
"""Formats whose packets tell the times of the frames."""
STILL = {"image2", "tty", "lrc"}
"""Formats that FFmpeg opens though they hold a picture or a text."""
NALS = {"h264": {5}, "hevc": set(range(16, 22))}
"""Types of the NAL units that decoding may begin at: IDR; IRAP, after which only leading pictures are lost. A packet that
is merely marked as a key frame may be a recovery point of H.264, whose pictures may refer to what lies before it."""
INTRA = {"mjpeg", "prores", "png"}
"""Codecs without references."""
PICTURES = {"mpeg4": b"\0\0\1\xb6", "mpeg1video": b"\0\0\1\0", "mpeg2video": b"\0\0\1\0"}
"""Start codes of the pictures."""
KNOWN = {*NALS, *INTRA, *PICTURES, "vp9", "av1"}


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
    keys: tuple[int, ...]
    """Places of key frames, ascending."""
    pts: tuple[int, ...] = ()
    """[n] timestamps, ascending; empty where frames were counted."""
    order: tuple[int, ...] = ()
    """Timestamps of all packets in the file's order, those that an edit list discards included; empty where counted."""
    starts: tuple[int, ...] = ()
    """Places in ``order`` from which decoding gives every frame that is shown later, ascending; the first is 0."""
    simple: bool = True
    """Every key frame is such a start, none has frames that are shown before it and stored after it, nothing is discarded."""
    position: dict[int, int] = field(default_factory=dict, repr=False)
    """Timestamp -> place in ``order``."""

    @property
    def counted(self) -> bool:
        """Whether frames can only be found by counting from the start."""
        return not self.pts


def open_container(source: Input) -> Any:
    """The opened file. Raises UnusableError for what is no video."""
    if not isinstance(source, str):
        source.seek(0)
    try:
        container = av.open(source)
    except av.FFmpegError as error:
        if _begins_like_video(source):
            raise UnusableError("truncated", f"begins like a video, but the rest is missing ({first_line(error)})") from None
        raise UnusableError("not_a_video", "no known video format") from None
    name = format_name(container)
    if name in STILL or name.endswith("_pipe"):
        container.close()
        raise UnusableError("not_a_video", f"a picture or a text ({name})")
    return container


def _begins_like_video(source: Input) -> bool:
    if isinstance(source, str):
        with open(source, "rb") as file:
            head = file.read(16)
    else:
        source.seek(0)
        head = source.read(16)
    return b"ftyp" in head or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF")


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
    stream = streams[0]
    if stream.codec_context is None:
        raise UnusableError("unsupported_codec", "this FFmpeg has no decoder for its video stream")
    stream.codec_context.thread_count = 1  # cores are shared out between videos
    return stream


def codec_name(stream: Any) -> str:
    """FFmpeg's name of the codec, whichever of its decoders is used."""
    return str(stream.codec_context.codec.canonical_name)


def index_packets(container: Any, stream: Any) -> FrameIndex | None:
    """Frames as the packets tell them, without decoding; None where they cannot be believed and frames must be counted.

    Believed are the formats of ``INDEXED`` whose packets all have times of their own, and which begin with a key frame and
    nothing that is shown before it, for decoders drop such frames. Raises UnusableError for fewer frames than promised.
    """
    codec = codec_name(stream)
    if format_name(container) not in INDEXED or codec not in KNOWN:
        return None
    packets = [packet for packet in container.demux(stream) if packet.size]
    if stream.frames > len(packets):
        raise UnusableError("truncated", f"{len(packets)} frames of the {stream.frames} that its header promises")
    order = tuple(packet.pts for packet in packets)
    position = {time: place for place, time in enumerate(order)}
    if not packets or None in position or len(position) < len(order):
        return None
    if codec == "mpeg4" and any(bytes(packet).count(PICTURES[codec]) != 1 for packet in packets):
        return None  # B-frames packed as for AVI
    extradata = stream.codec_context.extradata or b""
    marked = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    starts = tuple(place for place in marked if _is_start(codec, bytes(packets[place]), extradata))
    if starts[:1] != (0,) or min(order) < order[0]:
        return None
    shown = sorted(packet.pts for packet in packets if not packet.is_discard)
    places = {time: place for place, time in enumerate(shown)}
    times = np.array([float((time - shown[0]) * stream.time_base) for time in shown])
    keys = tuple(sorted(places[order[place]] for place in marked if order[place] in places))
    simple = len(shown) == len(order) and starts == tuple(marked) and not _has_leading(order, marked)
    return FrameIndex(times, keys, tuple(shown), order, starts, simple, position)


def _is_start(codec: str, data: bytes, extradata: bytes) -> bool:
    """Whether the packet itself says that it refers to nothing before it: a file's marks may be missing or wrong."""
    if codec in NALS:
        return bool(_nal_types(codec, data, extradata) & NALS[codec])
    if codec == "vp9":  # not a repeated frame, and a key frame, in profiles 0 to 2
        return data[0] & 0b1100 == 0
    if codec == "av1":  # begins with a sequence header, perhaps after a temporal delimiter of 2 bytes
        return 1 in (data[0] >> 3 & 15, data[2] >> 3 & 15 if data[:2] == b"\x12\0" else 0)
    if codec in PICTURES:
        head = data.partition(PICTURES[codec])[2][:2]
        return bool(head) and (head[0] >> 6 == 0 if codec == "mpeg4" else head[-1] >> 3 & 7 == 1)
    return codec in INTRA


def _nal_types(codec: str, data: bytes, extradata: bytes) -> set[int]:
    """Types of a packet's NAL units, which have lengths (ISO/IEC 14496-15) or start codes before them."""
    heads = []
    if extradata[:1] == b"\x01":
        width = 1 + (extradata[21 if codec == "hevc" else 4] & 3)
        place = 0
        while place + width < len(data):
            heads.append(data[place + width])
            place += width + int.from_bytes(data[place : place + width], "big")
    else:
        heads = [part[0] for part in data.split(b"\0\0\1")[1:] if part]
    return {head >> 1 & 63 if codec == "hevc" else head & 31 for head in heads}


def _has_leading(order: Sequence[int], keys: Sequence[int]) -> bool:
    """Whether a frame that is stored after a key frame is shown before it: an open GOP."""
    edges = [*keys, len(order)]
    return any(min(order[a:b]) < order[a] for a, b in itertools.pairwise(edges))


def count_frames(container: Any, stream: Any) -> tuple[FrameIndex, set[tuple[int, int]], tuple[int, ...]]:
    """Decode everything: an index without timestamps, the sizes of the frames, and their timestamps.

    Times are by number and rate where the file's own do not rise.
    """
    told: list[float | None] = []
    keys: list[int] = []
    sizes: set[tuple[int, int]] = set()
    seen: list[int] = []
    lasting = 0.0  # seconds that a frame says it lasts: a raw stream tells no other rate
    for place, frame in enumerate(container.decode(stream)):
        told.append(frame.time)
        seen.append(frame.pts)
        lasting = lasting or float((frame.duration or 0) * (frame.time_base or 0))
        sizes.add((frame.width, frame.height))
        if frame.key_frame:
            keys.append(place)
    return (
        FrameIndex(_rising(told, lasting or 1 / float(stream.guessed_rate or stream.average_rate or 25)), tuple(keys)),
        sizes,
        tuple(seen),
    )


def _rising(told: Sequence[float | None], lasting: float) -> NDArray[np.float64]:
    if None in told or len(told) < 2:
        return np.arange(len(told), dtype=np.float64) * lasting
    times = np.array(told, np.float64)
    if times.min() == times.max():
        return np.arange(len(told), dtype=np.float64) * lasting
    if (np.diff(times) > 0).all():
        return np.asarray(times - times[0])
    # B-frames in AVI: the right times in a wrong order; a header's rate may count fields
    return np.asarray(np.arange(len(times)) * np.median(np.diff(np.unique(times))))


def first_line(error: BaseException) -> str:
    """An error's text, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
