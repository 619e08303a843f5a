"""The exact window reader: any frames of any file that PyAV decodes, the same as if the file were decoded from its start.

It seeks only where that is proven to change nothing: to a packet that decoding may begin at (see ``container.NALS``), and
only if the packets that follow are those that follow it in the file. Everything else is decoded from the first frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.video.container import FrameIndex, Input, UnusableError, first_line, open_container, video_stream

T = TypeVar("T")
UInt8s = NDArray[np.uint8]


class _OtherPackets(Exception):
    """A seek did not land where the index says."""


def decode_frames(source: Input, index: FrameIndex, places: Sequence[int]) -> list[UInt8s]:
    """Upright RGB frames [H, W, 3] at ascending places. Raises UnusableError when one does not decode."""
    found = read_frames(source, index, places, FrameConverter())
    return [found[place] for place in places]


def read_frames(source: Input, index: FrameIndex, places: Sequence[int], convert: Callable[[Any], T]) -> dict[int, T]:
    """``convert(frame)`` of the frames at these places. Raises UnusableError when one does not decode."""
    try:
        try:
            found = _from_start(source, index, places, convert) if index.counted else _by_seeks(source, index, places, convert)
        except _OtherPackets:
            found = _from_start(source, index, places, convert)
    except av.FFmpegError as error:
        raise UnusableError("undecodable", first_line(error)) from None
    if lost := [place for place in places if place not in found]:
        raise UnusableError("undecodable", f"frame {lost[0]} of {len(index.times)} does not decode")
    return found


def _from_start(source: Input, index: FrameIndex, places: Sequence[int], convert: Callable[[Any], T]) -> dict[int, T]:
    wanted = {index.pts[place] if index.pts else place: place for place in places}
    found: dict[int, T] = {}
    with open_container(source) as container:
        for number, frame in enumerate(container.decode(video_stream(container))):
            name = frame.pts if index.pts else number
            if name in wanted:
                found[wanted[name]] = convert(frame)
                if len(found) == len(wanted):
                    break
    return found


def _by_seeks(source: Input, index: FrameIndex, places: Sequence[int], convert: Callable[[Any], T]) -> dict[int, T]:
    """Decode on from place to place, and seek only where a start lies between."""
    wanted = {index.pts[place]: place for place in places}
    found: dict[int, T] = {}
    with open_container(source) as container:
        reader = _Reader(container, video_stream(container), index)
        for place in sorted(places):
            time = index.pts[place]
            for frame in reader.up_to(time) if place not in found else ():
                if frame.pts in wanted:
                    found[wanted[frame.pts]] = convert(frame)
                if frame.pts >= time:
                    break
    return found


class _Reader:
    """Frames of an indexed file, on from wherever the last one was."""

    def __init__(self, container: Any, stream: Any, index: FrameIndex) -> None:
        self.container, self.stream, self.index = container, stream, index
        self.fed = -2
        """Place of the last packet that the decoder got, in ``index.order``."""
        self.frames: Iterator[Any] = iter(())

    def up_to(self, time: int) -> Iterator[Any]:
        """The frames to come, of which that of ``time`` is one."""
        index = self.index
        # the last start that is neither shown after the frame nor stored after its packet
        start = max(s for s in index.starts if index.order[s] <= time and s <= index.position[time])
        if start > self.fed + 1:
            self.frames = self._decode(start)
        return self.frames

    def _decode(self, start: int) -> Iterator[Any]:
        index, begin = self.index, self.index.order[start]
        self.container.seek(begin, stream=self.stream)
        place = None
        for packet in self.container.demux(self.stream):
            if packet.size:
                landed = place is None
                place = index.position.get(packet.pts, len(index.order)) if place is None else place + 1
                if place >= len(index.order) or index.order[place] != packet.pts or (landed and place > start):
                    raise _OtherPackets
                self.fed = place
            # frames before the start may lack what they refer to
            yield from (frame for frame in packet.decode() if frame.pts is not None and frame.pts >= begin)


class FrameConverter:
    """Turns decoded frames into upright RGB [H, W, 3] uint8, scaled to ``width`` and ``height`` (None: the frame's own).

    One for each file and thread: it keeps FFmpeg's scaler, which a frame's own ``reformat`` makes anew for every frame, with a
    thread for each core, at a cost of several small frames' decoding.
    """

    def __init__(self, width: int | None = None, height: int | None = None) -> None:
        self.size = (width, height)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8s:
        turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
        width, height = self.size[::-1] if turns % 2 else self.size
        rgb = self.reformatter.reformat(frame, width, height, format="rgb24", threads=1)
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))
