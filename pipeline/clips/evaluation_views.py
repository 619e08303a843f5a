"""Test views, K clips x C crops of a video, from one pass over its file: frames are decoded and kept once, and views are cut
from them on the device that computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.clips.decode import DecodeError, UInt8s, window_corner
from pipeline.clips.source import Columns, Source
from pipeline.seeds import Floats, Ints

STUDENTS = ("primary", "auxiliary")


def decode_videos(source: Source, videos: Ints, moments: Floats) -> Columns:
    """Decode V videos once each, for their clips at all K ``moments``.

    ``video`` [V]; ``pixels`` [bytes] uint8, all videos' frames one after the other, of the ``shape`` [V, 3] frames, height and
    width; ``primary`` and ``auxiliary`` [V, K, T], which of its video's frames each clip shows; ``reason`` [V K], "" or why a
    clip could not be decoded.
    """
    decoded = [_decode(source, int(video), moments) for video in videos]
    pixels = [frames.reshape(-1) for frames, _, _ in decoded]
    return {
        "video": np.asarray(videos, dtype=np.int64),
        "pixels": pixels[0] if len(pixels) == 1 else np.concatenate(pixels),
        "shape": np.array([frames.shape[:3] for frames, _, _ in decoded], dtype=np.int64),
        **{name: np.stack([shown[place] for _, shown, _ in decoded]) for place, name in enumerate(STUDENTS)},
        "reason": np.array([reason for _, _, reasons in decoded for reason in reasons]),
    }


def _decode(source: Source, video: int, moments: Floats) -> tuple[UInt8s, tuple[Ints, ...], list[str]]:
    """Frames [N, H, W, 3], which of them each student's K clips show, and K reasons.

    What fails in one pass is tried clip by clip: a file damaged at its end keeps the clips before, and a decoder's limits of
    time and memory are for one clip.
    """
    try:
        frames_NHWC, shown = source.frames(video, moments.tolist())
        return frames_NHWC, shown, [""] * len(moments)
    except DecodeError:
        pass
    parts: list[UInt8s] = []
    shown = tuple(np.zeros((len(moments), clip.frames), dtype=np.int64) for clip in source.clips)
    reasons = []
    for number, moment in enumerate(moments.tolist()):
        try:
            frames_NHWC, here = source.frames(video, [moment])
        except DecodeError as error:
            reasons.append(str(error) or "unknown")
            continue
        before = sum(map(len, parts))
        parts.append(frames_NHWC)
        reasons.append("")
        for all_KT, one_KT in zip(shown, here, strict=True):
            all_KT[number] = before + one_KT[0]
    return np.concatenate(parts) if parts else np.zeros((0, source.size, source.size, 3), np.uint8), shown, reasons


@dataclass(frozen=True)
class VideoFrames:
    """One video of ``decode_videos``, on a device."""

    video: int
    """Manifest row."""
    reasons: tuple[str, ...]
    """[K] "" or why this clip could not be decoded."""
    frames: torch.Tensor
    """uint8 [N, H, W, 3]."""
    shown: dict[str, torch.Tensor]
    """[K, T] frames of each student's clips."""

    def cut(self, student: str, clip: int, window: float, size: int) -> torch.Tensor:
        """The square at ``window`` of one clip, uint8 [T, size, size, 3]."""
        _, height, width, _ = self.frames.shape
        left, top = window_corner(window, width, height, size)
        return self.frames[:, top : top + size, left : left + size][self.shown[student][clip]]


@dataclass(frozen=True)
class ViewBatch:
    """n views of one or several videos."""

    videos: Ints
    """[n] manifest rows."""
    reasons: list[str]
    """[n] "" or why a view is blank."""
    clips: dict[str, torch.Tensor]
    """uint8 [n, T, size, size, 3] by student."""


def to_tensors(columns: Columns, pin: bool = False) -> dict[str, torch.Tensor]:
    """Of columns of ``decode_videos`` what goes to the device; copied where memory is to be pinned, or is not ours to write."""
    found = {}
    for name in ("pixels", *STUDENTS):
        array = columns[name]
        if pin or not array.flags.writeable:
            tensor = torch.empty(array.shape, dtype=torch.uint8 if name == "pixels" else torch.int64, pin_memory=pin)
            np.copyto(tensor.numpy(), array)
        else:
            tensor = torch.from_numpy(array)
        found[name] = tensor
    return found


def unpack(columns: Columns, tensors: dict[str, torch.Tensor], device: torch.device) -> Iterator[VideoFrames]:
    """The videos of ``decode_videos``, on ``device``; ``tensors`` are ``to_tensors`` of its columns."""
    there = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    shapes = columns["shape"].tolist()
    lengths = [number * height * width * 3 for number, height, width in shapes]
    clips = len(columns["reason"]) // len(shapes)
    for place, pixels in enumerate(there["pixels"].split(lengths)):
        yield VideoFrames(
            video=int(columns["video"][place]),
            reasons=tuple(str(reason) for reason in columns["reason"][place * clips : (place + 1) * clips]),
            frames=pixels.view(*shapes[place], 3),
            shown={name: there[name][place] for name in STUDENTS},
        )


def batch_views(videos: Iterable[VideoFrames], windows: Sequence[float], size: int, number: int) -> Iterator[ViewBatch]:
    """All clips x ``windows`` of the videos, in this order, ``number`` at once, the last ones fewer; a batch may hold views of
    several videos, or a part of one's."""
    views: list[tuple[VideoFrames, int, float]] = []
    for video in videos:
        for clip in range(len(video.reasons)):
            for window in windows:
                views.append((video, clip, window))
                if len(views) == number:
                    yield _cut(views, size)
                    views = []
    if views:
        yield _cut(views, size)


def _cut(views: Sequence[tuple[VideoFrames, int, float]], size: int) -> ViewBatch:
    clips = {}
    for name in STUDENTS:
        frames = views[0][0].shown[name].shape[1]
        shape = (len(views), frames, size, size, 3)
        clips[name] = torch.empty(shape, dtype=torch.uint8, device=views[0][0].frames.device)
        for place, (video, clip, window) in enumerate(views):
            if video.reasons[clip]:
                clips[name][place].zero_()
            else:
                clips[name][place] = video.cut(name, clip, window, size)
    videos = np.array([video.video for video, _, _ in views], dtype=np.int64)
    return ViewBatch(videos, [video.reasons[clip] for video, clip, _ in views], clips)
