"""Exact reading with PyAV: any frames of a video file, the same as if the file were decoded from its start.

The reader seeks only where this is proven to change nothing: to a packet at which decoding may begin (see
``container.RANDOM_ACCESS_NAL_TYPES``), and only if the packets that follow are those that follow it in the file. Otherwise it
decodes from the first frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.video.container import (
    UnusableVideoError,
    VideoIndex,
    VideoInput,
    find_video_stream,
    open_container,
    summarize_error,
)

T = TypeVar("T")
UInt8s = NDArray[np.uint8]


class _SeekMissedError(Exception):
    """A seek did not lead to the packet that the index says."""


def read_rgb_frames(source: VideoInput, index: VideoIndex, frame_indices: Sequence[int]) -> list[UInt8s]:
    """Reads frames as upright RGB [H, W, 3], in the order of ``frame_indices``.

    Raises UnusableVideoError if a frame cannot be decoded.
    """
    frames = read_frames(source, index, frame_indices, FrameConverter())
    return [frames[i] for i in frame_indices]


def read_frames(
    source: VideoInput, index: VideoIndex, frame_indices: Sequence[int], convert: Callable[[Any], T]
) -> dict[int, T]:
    """Returns ``convert(frame)`` of the PyAV frames at these frame indices, by frame index.

    Raises UnusableVideoError if a frame cannot be decoded.
    """
    try:
        try:
            read = _read_from_start if index.is_counted else _read_by_seeking
            frames = read(source, index, frame_indices, convert)
        except _SeekMissedError:
            frames = _read_from_start(source, index, frame_indices, convert)
    except av.FFmpegError as error:
        raise UnusableVideoError("undecodable", summarize_error(error)) from None
    if lost := [i for i in frame_indices if i not in frames]:
        raise UnusableVideoError("undecodable", f"frame {lost[0]} of {len(index.times)} cannot be decoded")
    return frames


def _read_from_start(
    source: VideoInput, index: VideoIndex, frame_indices: Sequence[int], convert: Callable[[Any], T]
) -> dict[int, T]:
    wanted = {index.pts[i] if index.pts else i: i for i in frame_indices}
    frames: dict[int, T] = {}
    with open_container(source) as container:
        for number, frame in enumerate(container.decode(find_video_stream(container))):
            key = frame.pts if index.pts else number
            if key in wanted:
                frames[wanted[key]] = convert(frame)
                if len(frames) == len(wanted):
                    break
    return frames


def _read_by_seeking(
    source: VideoInput, index: VideoIndex, frame_indices: Sequence[int], convert: Callable[[Any], T]
) -> dict[int, T]:
    """Decode on from frame to frame, and seek only where a random access point lies between two of them."""
    wanted = {index.pts[i]: i for i in frame_indices}
    frames: dict[int, T] = {}
    with open_container(source) as container:
        reader = _SeekingReader(container, find_video_stream(container), index)
        for i in sorted(frame_indices):
            pts = index.pts[i]
            for frame in reader.frames_up_to(pts) if i not in frames else ():
                if frame.pts in wanted:
                    frames[wanted[frame.pts]] = convert(frame)
                if frame.pts >= pts:
                    break
    return frames


class _SeekingReader:
    """Decodes an indexed file on from wherever the last frame was, or from a random access point further on."""

    def __init__(self, container: Any, stream: Any, index: VideoIndex) -> None:
        self.container, self.stream, self.index = container, stream, index
        self.last_packet = -2
        """Packet index of the last packet that the decoder was given."""
        self.frames: Iterator[Any] = iter(())

    def frames_up_to(self, pts: int) -> Iterator[Any]:
        """The next frames, among which is the one with the timestamp ``pts``."""
        index = self.index
        # the last access point that is neither presented after the frame nor stored after its packet
        start = max(
            packet
            for packet in index.random_access_points
            if index.packet_pts[packet] <= pts and packet <= index.packet_of_pts[pts]
        )
        if start > self.last_packet + 1:
            self.frames = self._decode_from(start)
        return self.frames

    def _decode_from(self, start: int) -> Iterator[Any]:
        index, first_pts = self.index, self.index.packet_pts[start]
        self.container.seek(first_pts, stream=self.stream)
        number = None
        for packet in self.container.demux(self.stream):
            if packet.size:
                is_first = number is None
                number = index.packet_of_pts.get(packet.pts, len(index.packet_pts)) if number is None else number + 1
                is_expected = number < len(index.packet_pts) and index.packet_pts[number] == packet.pts
                if not is_expected or (is_first and number > start):
                    raise _SeekMissedError
                self.last_packet = number
            # frames before the access point may lack the frames that they refer to
            yield from (frame for frame in packet.decode() if frame.pts is not None and frame.pts >= first_pts)


class FrameConverter:
    """Converts decoded frames to upright RGB [H, W, 3] uint8, scaled to ``width`` and ``height`` (None: the frame's own).

    Make one for each file and thread: it keeps FFmpeg's scaler, which a frame's own ``reformat`` makes anew for every frame,
    with a thread for each core, at a cost of several small frames' decoding.
    """

    def __init__(self, width: int | None = None, height: int | None = None) -> None:
        self.size = (width, height)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8s:
        quarter_turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
        width, height = self.size[::-1] if quarter_turns % 2 else self.size
        rgb = self.reformatter.reformat(frame, width, height, format="rgb24", threads=1)
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarter_turns))
