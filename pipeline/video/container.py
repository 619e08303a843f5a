"""Reading a video file's container with PyAV: its video stream, its frames in order of presentation, and where to seek.

Container formats differ in what their packets can be trusted to say. MP4 and Matroska store every frame's time in its
packet; AVI packets have wrong times, and transport streams cannot be sought exactly, so frames of these and other formats
are counted by decoding from the start.
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

VideoInput = str | io.BufferedIOBase
"""A local path, or a seekable file."""

FORMATS_WITH_TIMES = {"mov", "matroska"}
"""Container formats whose packets store the times of the frames."""
NOT_VIDEO_FORMATS = {"image2", "tty", "lrc"}
"""Formats that FFmpeg opens as a video although they hold a still image or a text."""
RANDOM_ACCESS_NAL_TYPES = {"h264": {5}, "hevc": set(range(16, 22))}
"""Types of the NAL units at which decoding may begin: IDR for H.264; IRAP for HEVC, after which only leading pictures are
lost. A packet that is merely marked as a key frame may be a recovery point of H.264: pictures after it may refer to pictures
before it."""
INTRA_CODECS = {"mjpeg", "prores", "png"}
"""Codecs that code each frame without reference to others."""
PICTURE_START_CODES = {"mpeg4": b"\0\0\1\xb6", "mpeg1video": b"\0\0\1\0", "mpeg2video": b"\0\0\1\0"}
"""The bytes before each coded picture."""
KNOWN_CODECS = {*RANDOM_ACCESS_NAL_TYPES, *INTRA_CODECS, *PICTURE_START_CODES, "vp9", "av1"}


class UnusableVideoError(Exception):
    """Raised for a video that cannot be used; ``status`` is what the manifest calls it, and the text gives the reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video file in order of presentation, and the packets from which they can be decoded.

    A frame index is a frame's position in this order, from 0. A packet index is a packet's position in the file.
    """

    times: NDArray[np.float64]
    """[n] seconds from the first frame."""
    key_frames: tuple[int, ...]
    """Frame indices of the key frames, ascending."""
    pts: tuple[int, ...] = ()
    """[n] presentation timestamps, ascending; empty where frames were counted by decoding."""
    packet_pts: tuple[int, ...] = ()
    """Timestamps of all packets in the order of the file, those that an edit list discards included; empty where frames were
    counted by decoding."""
    random_access_points: tuple[int, ...] = ()
    """Packet indices, ascending, from which decoding returns every frame that is presented later; the first is 0."""
    is_simple: bool = True
    """Whether decoding may begin at every key frame, no frame that is stored after a key frame is presented before it (closed
    GOPs), and no packet is discarded."""
    packet_of_pts: dict[int, int] = field(default_factory=dict, repr=False)
    """Timestamp -> packet index."""

    @property
    def is_counted(self) -> bool:
        """Whether the file has no trusted timestamps, so that a frame is found only by counting frames from the start."""
        return not self.pts


def open_container(source: VideoInput) -> Any:
    """Opens a video file with PyAV. Raises UnusableVideoError for a file that is not a video."""
    if not isinstance(source, str):
        source.seek(0)
    try:
        container = av.open(source)
    except av.FFmpegError as error:
        if _is_like_video(source):
            reason = f"it begins like a video, but the rest is missing ({summarize_error(error)})"
            raise UnusableVideoError("truncated", reason) from None
        raise UnusableVideoError("not_a_video", "no known video format") from None
    name = get_format_name(container)
    if name in NOT_VIDEO_FORMATS or name.endswith("_pipe"):
        container.close()
        raise UnusableVideoError("not_a_video", f"a still image or a text ({name})")
    return container


def _is_like_video(source: VideoInput) -> bool:
    if isinstance(source, str):
        with open(source, "rb") as file:
            head = file.read(16)
    else:
        source.seek(0)
        head = source.read(16)
    return b"ftyp" in head or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF")


def get_format_name(container: Any) -> str:
    """Returns the first of FFmpeg's names of the container format, for example mov, matroska, avi or mpegts."""
    return str(container.format.name.split(",")[0])


def find_video_stream(container: Any) -> Any:
    """Finds the first video stream that is not a cover picture. Raises UnusableVideoError if none can be decoded."""
    if not container.streams:
        raise UnusableVideoError("truncated", "it begins like a video, but holds no streams")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({"cover picture" if s.type == "video" else s.type for s in container.streams})
        raise UnusableVideoError("no_video_stream", f"holds only {' and '.join(kinds)}")
    stream = streams[0]
    if stream.codec_context is None:
        raise UnusableVideoError("unsupported_codec", "this FFmpeg has no decoder for its video stream")
    stream.codec_context.thread_count = 1  # the cores are shared among videos
    return stream


def get_codec_name(stream: Any) -> str:
    """Returns FFmpeg's name of a stream's codec, which is the same whichever of its decoders is used."""
    return str(stream.codec_context.codec.canonical_name)


def index_by_packets(container: Any, stream: Any) -> VideoIndex | None:
    """Indexes the frames by their packets, without decoding; None where packets cannot be trusted and frames must be counted.

    Trusted are the packets of ``FORMATS_WITH_TIMES`` if each has a time of its own, and if the file begins with a key frame
    and no frame is presented before it, for decoders drop such frames. Raises UnusableVideoError if the file has fewer frames
    than its header says.
    """
    codec = get_codec_name(stream)
    if get_format_name(container) not in FORMATS_WITH_TIMES or codec not in KNOWN_CODECS:
        return None
    packets = [packet for packet in container.demux(stream) if packet.size]
    if stream.frames > len(packets):
        reason = f"it holds {len(packets)} frames of the {stream.frames} that its header promises"
        raise UnusableVideoError("truncated", reason)
    packet_pts = tuple(packet.pts for packet in packets)
    packet_of_pts = {pts: i for i, pts in enumerate(packet_pts)}
    if not packets or None in packet_of_pts or len(packet_of_pts) < len(packet_pts):
        return None
    if codec == "mpeg4" and any(bytes(packet).count(PICTURE_START_CODES[codec]) != 1 for packet in packets):
        return None  # B-frames packed as for AVI
    extradata = stream.codec_context.extradata or b""
    key_packets = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    access_points = tuple(i for i in key_packets if _is_random_access_point(codec, bytes(packets[i]), extradata))
    if access_points[:1] != (0,) or min(packet_pts) < packet_pts[0]:
        return None
    pts = sorted(packet.pts for packet in packets if not packet.is_discard)
    frame_of_pts = {time: i for i, time in enumerate(pts)}
    times = np.array([float((time - pts[0]) * stream.time_base) for time in pts])
    key_frames = tuple(sorted(frame_of_pts[packet_pts[i]] for i in key_packets if packet_pts[i] in frame_of_pts))
    is_simple = (
        len(pts) == len(packet_pts) and access_points == tuple(key_packets) and not _has_open_gop(packet_pts, key_packets)
    )
    return VideoIndex(times, key_frames, tuple(pts), packet_pts, access_points, is_simple, packet_of_pts)


def _is_random_access_point(codec: str, data: bytes, extradata: bytes) -> bool:
    """Whether a packet's own bytes say that it refers to nothing before it: the container's key frame marks may be wrong."""
    if codec in RANDOM_ACCESS_NAL_TYPES:
        return bool(_nal_types(codec, data, extradata) & RANDOM_ACCESS_NAL_TYPES[codec])
    if codec == "vp9":  # not a repeated frame, and a key frame, in profiles 0 to 2
        return data[0] & 0b1100 == 0
    if codec == "av1":  # begins with a sequence header, perhaps after a temporal delimiter of 2 bytes
        return 1 in (data[0] >> 3 & 15, data[2] >> 3 & 15 if data[:2] == b"\x12\0" else 0)
    if codec in PICTURE_START_CODES:
        head = data.partition(PICTURE_START_CODES[codec])[2][:2]
        return bool(head) and (head[0] >> 6 == 0 if codec == "mpeg4" else head[-1] >> 3 & 7 == 1)
    return codec in INTRA_CODECS


def _nal_types(codec: str, data: bytes, extradata: bytes) -> set[int]:
    """Types of a packet's NAL units, each of which follows its length (ISO/IEC 14496-15) or a start code."""
    headers = []
    if extradata[:1] == b"\x01":
        width = 1 + (extradata[21 if codec == "hevc" else 4] & 3)
        offset = 0
        while offset + width < len(data):
            headers.append(data[offset + width])
            offset += width + int.from_bytes(data[offset : offset + width], "big")
    else:
        headers = [unit[0] for unit in data.split(b"\0\0\1")[1:] if unit]
    return {header >> 1 & 63 if codec == "hevc" else header & 31 for header in headers}


def _has_open_gop(packet_pts: Sequence[int], key_packets: Sequence[int]) -> bool:
    """Whether a frame that is stored after a key frame is presented before it."""
    edges = [*key_packets, len(packet_pts)]
    return any(min(packet_pts[a:b]) < packet_pts[a] for a, b in itertools.pairwise(edges))


def index_by_decoding(container: Any, stream: Any) -> tuple[VideoIndex, set[tuple[int, int]], tuple[int, ...]]:
    """Indexes the frames by decoding all of them, where packets cannot be trusted.

    Returns an index without timestamps, the sizes (width, height) that occur among the frames, and the frames' timestamps.
    Times follow from frame number and frame rate where the file's own times do not increase.
    """
    stored_times: list[float | None] = []
    key_frames: list[int] = []
    sizes: set[tuple[int, int]] = set()
    pts: list[int] = []
    frame_seconds = 0.0  # the duration stored with a frame: a raw stream has no other hint at its rate
    for i, frame in enumerate(container.decode(stream)):
        stored_times.append(frame.time)
        pts.append(frame.pts)
        frame_seconds = frame_seconds or float((frame.duration or 0) * (frame.time_base or 0))
        sizes.add((frame.width, frame.height))
        if frame.key_frame:
            key_frames.append(i)
    frame_seconds = frame_seconds or 1 / float(stream.guessed_rate or stream.average_rate or 25)
    return VideoIndex(_increasing_times(stored_times, frame_seconds), tuple(key_frames)), sizes, tuple(pts)


def _increasing_times(stored_times: Sequence[float | None], frame_seconds: float) -> NDArray[np.float64]:
    if None in stored_times or len(stored_times) < 2:
        return np.arange(len(stored_times), dtype=np.float64) * frame_seconds
    times = np.array(stored_times, np.float64)
    if times.min() == times.max():
        return np.arange(len(stored_times), dtype=np.float64) * frame_seconds
    if (np.diff(times) > 0).all():
        return np.asarray(times - times[0])
    # B-frames in AVI: the right times in a wrong order; a header's rate may count fields
    return np.asarray(np.arange(len(times)) * np.median(np.diff(np.unique(times))))


def summarize_error(error: BaseException) -> str:
    """Returns the first line of an error's text, cut after 200 characters, or the error's type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
