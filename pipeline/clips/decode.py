"""Decodes the frames that all students need in one pass over a video, as uint8 at decode size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.clips.sampling import SLACK, Moment, SampledClip, compute_clip_times, compute_frame_starts, find_frames
from pipeline.files import storage
from pipeline.seeds import Floats, Ints
from pipeline.video import image_sequence
from pipeline.video.container import VideoIndex, find_video_stream, index_by_packets, open_container, summarize_error
from pipeline.video.decord_check import decord
from pipeline.video.exact_reader import FrameConverter, read_frames
from pipeline.video.frame_cache import get_frame_cache

UInt8s = npt.NDArray[np.uint8]


class DecodeError(Exception):
    """A video cannot be decoded; the text gives the reason."""


@dataclass(frozen=True)
class Video:
    """What the decoder needs to know about a video file; the values come from the manifest."""

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
    """``decord``; ``pyav`` where the probe found decord's frames wrong; ``frames`` for numbered images."""


def decode_clips(
    video: Video, moment: Moment, crop_position: float, clips: Sequence[SampledClip], size: int, cache_bytes: int = 0
) -> tuple[UInt8s, ...]:
    """Decodes every student's clip in one pass: [T, size, size, 3] uint8 each, in the order of ``clips``.

    ``moment`` places the clips in time (see ``compute_clip_times``). The frames are cropped to a square, which
    ``crop_position`` places along the longer side: 0 is left or top, 0.5 the center, 1 right or bottom. Raises DecodeError as
    ``decode_moments`` does.
    """
    frames_NHWC, shown = decode_moments(video, [moment], clips, size, cache_bytes)
    left, top = compute_crop_corner(crop_position, frames_NHWC.shape[2], frames_NHWC.shape[1], size)
    square = frames_NHWC[:, top : top + size, left : left + size]
    return tuple(square[shown_KT[0]] for shown_KT in shown)


def decode_moments(
    video: Video, moments: Sequence[Moment], clips: Sequence[SampledClip], size: int, cache_bytes: int = 0
) -> tuple[UInt8s, tuple[Ints, ...]]:
    """Decodes in one pass what the clips at all K ``moments`` show. Only these frames are kept, and each of them once.

    Returns [N, H, W, 3] uint8 frames in their order, whose shorter side is scaled to ``size``; and for each student [K, T],
    which of these N frames its clips show. With ``cache_bytes``, this process keeps so many bytes of decoded videos, and reads
    these from memory the next time. Raises DecodeError for anything wrong with the file, among them, where it is known
    without decoding all, a frame count that is not the manifest's; StorageError if its store does not answer.
    """
    width, height = compute_scaled_size(video.width, video.height, size)
    times = [clip for moment in moments for clip in compute_clip_times(moment, video.start, video.end, clips)]
    try:
        frames_NHWC, starts, wanted = _read_through_cache(video, times, width, height, cache_bytes)
    except (DecodeError, storage.StorageError):
        raise
    except Exception as error:  # decord and FFmpeg raise many types; all mean that this file failed
        raise DecodeError(f"{type(error).__name__}: {summarize_error(error)}") from None
    if frames_NHWC.shape[1:] != (height, width, 3):
        raise DecodeError(f"frames of {frames_NHWC.shape[2]}x{frames_NHWC.shape[1]} where {width}x{height} were asked for")
    shown = [np.searchsorted(wanted, find_frames(clip, starts)) for clip in times]
    return frames_NHWC, tuple(np.stack(shown[student :: len(clips)]) for student in range(len(clips)))


def compute_crop_corner(crop_position: float, width: int, height: int, size: int) -> tuple[int, int]:
    """Computes left and top in pixels of a square of side ``size`` at ``crop_position`` (0..1) along the longer side."""
    return round(crop_position * (width - size)), round(crop_position * (height - size))


def compute_scaled_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Computes width and height in pixels after the shorter side is scaled to ``size``."""
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


Frames = tuple[UInt8s, Floats, Ints]
"""[N, H, W, 3] decoded frames, [n] start times of all frames of the video in seconds, and [N] the decoded frames' indices."""


def _read_through_cache(video: Video, times: Sequence[Floats], width: int, height: int, cache_bytes: int) -> Frames:
    """Reads frames from the cache, where it has or gets the video; only constant rates say without the file which frames."""
    read = READERS[video.decoder]
    if cache_bytes and not video.variable_fps:
        starts = compute_frame_starts(video.frames, video.fps)
        first, last = find_frames(np.array([video.start, video.end]), starts)
        shape = (int(last - first + 1), height, width, 3)
        frames_NHWC = get_frame_cache(cache_bytes).read(
            (video, width, height), shape, lambda: read(video, [starts[first : last + 1]], width, height)[0]
        )
        if frames_NHWC is not None:
            wanted = _find_wanted_frames(times, starts)
            return frames_NHWC[wanted - first], starts, wanted
    return read(video, times, width, height)


def _find_wanted_frames(times: Sequence[Floats], starts: Floats) -> Ints:
    return np.unique(np.concatenate([find_frames(t, starts) for t in times]))


def _check_count(count: int, video: Video) -> None:
    if count != video.frames:
        raise DecodeError(f"{count} frames, the manifest says {video.frames}: has the file changed?")


def _is_misread_by_decord(width: int) -> bool:
    """Returns whether decord refuses frames of this width (8, 12, 16, 24, 48 and 72): FFmpeg pads lines to 32 pixels, and where
    the padded line is a multiple of the width decord takes the quotient for the number of channels."""
    line = 3 * 32 * -(-width // 32)
    return line % width == 0 and line // width != 3


def _read_decord(video: Video, times: Sequence[Floats], width: int, height: int) -> Frames:
    if decord is None or _is_misread_by_decord(width):  # the probe has found both to agree on this file
        return _read_pyav(video, times, width, height)
    source = storage.open_for_decoder(video.location)
    reader = decord.VideoReader(source, width=width, height=height, num_threads=1)
    _check_count(len(reader), video)
    if video.variable_fps:
        starts = np.asarray(reader.get_frame_timestamp(range(video.frames)), dtype=np.float64)[:, 0]
        starts = starts - starts[0]
    else:
        starts = compute_frame_starts(video.frames, video.fps)
    wanted = _find_wanted_frames(times, starts)
    return reader.get_batch(wanted).asnumpy(), starts, wanted


def _read_pyav(video: Video, times: Sequence[Floats], width: int, height: int) -> Frames:
    """Reads by seeking where that is proven exact, else from the first frame on."""
    source = storage.open_for_decoder(video.location)
    with open_container(source) as container:
        index = index_by_packets(container, find_video_stream(container))
    if index is not None:
        _check_count(len(index.times), video)
    elif video.variable_fps:
        return _read_by_frame_times(source, video, times, width, height)
    starts = index.times if index and video.variable_fps else compute_frame_starts(video.frames, video.fps)
    wanted = _find_wanted_frames(times, starts)
    index = index or VideoIndex(starts, ())
    frames = read_frames(source, index, wanted.tolist(), FrameConverter(width, height))
    return np.stack([frames[index_of_frame] for index_of_frame in wanted.tolist()]), starts, wanted


def _read_by_frame_times(
    source: str | io.BufferedIOBase, video: Video, times: Sequence[Floats], width: int, height: int
) -> Frames:
    """Decodes from the first frame on, by the times stored with the frames; only the frames that are needed are kept."""
    wanted = list(np.unique(np.concatenate(times))[::-1] + SLACK)  # the earliest is last
    kept: dict[int, UInt8s] = {}
    frame_times: list[float] = []
    convert = FrameConverter(width, height)
    with open_container(source) as container:
        before = None
        for frame in container.decode(find_video_stream(container)):
            frame_times.append(float(frame.time))
            if before is not None and wanted[-1] < frame_times[-1] - frame_times[0]:
                kept[len(frame_times) - 2] = convert(before)
                while wanted and wanted[-1] < frame_times[-1] - frame_times[0]:
                    wanted.pop()
            before = frame
            if not wanted:
                break
        if before is None:
            raise DecodeError("no frame decodes")
        if wanted:
            kept[len(frame_times) - 1] = convert(before)
    return np.stack(list(kept.values())), np.asarray(frame_times) - frame_times[0], np.asarray(list(kept))


def _read_images(video: Video, times: Sequence[Floats], width: int, height: int) -> Frames:
    names = image_sequence.list_images(video.location)
    _check_count(len(names), video)
    starts = compute_frame_starts(video.frames, video.fps)
    wanted = _find_wanted_frames(times, starts)
    return np.stack([image_sequence.read_image(names[image], width, height) for image in wanted.tolist()]), starts, wanted


READERS = {"decord": _read_decord, "pyav": _read_pyav, "frames": _read_images}
