"""Makes test views, K clips x C crops of a video, of what ``whole_videos`` decodes: each frame is kept once, and the views are
cropped on the device that computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.clips.decode import compute_crop_corner
from pipeline.clips.source import Columns
from pipeline.config import STUDENTS
from pipeline.seeds import Ints


@dataclass(frozen=True)
class VideoFrames:
    """One video of ``decode_videos``, on a device."""

    video: int
    """The manifest row."""
    reasons: tuple[str, ...]
    """[K] why a clip could not be decoded, or ""."""
    frames: torch.Tensor
    """uint8 [N, H, W, 3], each frame once."""
    shown: dict[str, torch.Tensor]
    """[K, T] which of the frames each student's clips show."""

    def crop(self, student: str, clip: int, crop_position: float, size: int) -> torch.Tensor:
        """Crops one clip to the square at ``crop_position`` (0..1) on the longer side; returns uint8 [T, size, size, 3]."""
        _, height, width, _ = self.frames.shape
        left, top = compute_crop_corner(crop_position, width, height, size)
        return self.frames[:, top : top + size, left : left + size][self.shown[student][clip]]


@dataclass(frozen=True)
class ViewBatch:
    """n views of one or several videos."""

    videos: Ints
    """[n] manifest rows."""
    reasons: list[str]
    """[n] why a view is blank, or ""."""
    clips: dict[str, torch.Tensor]
    """uint8 [n, T, size, size, 3] by student."""


def convert_to_tensors(columns: Columns, pin: bool = False) -> dict[str, torch.Tensor]:
    """Converts those columns of ``decode_videos`` that go to the device to tensors.

    They are copied only if ``pin`` asks for page-locked memory or the arrays are read-only.
    """
    tensors = {}
    for name in ("pixels", *STUDENTS):
        array = columns[name]
        if pin or not array.flags.writeable:
            tensor = torch.empty(array.shape, dtype=torch.uint8 if name == "pixels" else torch.int64, pin_memory=pin)
            np.copyto(tensor.numpy(), array)
        else:
            tensor = torch.from_numpy(array)
        tensors[name] = tensor
    return tensors


def unpack_videos(columns: Columns, tensors: dict[str, torch.Tensor], device: torch.device) -> Iterator[VideoFrames]:
    """Yields the videos of ``decode_videos`` on ``device``; ``tensors`` are those of ``convert_to_tensors`` for ``columns``."""
    on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    shapes = columns["shape"].tolist()
    lengths = [number * height * width * 3 for number, height, width in shapes]
    clips = len(columns["reason"]) // len(shapes)
    for index, pixels in enumerate(on_device["pixels"].split(lengths)):
        yield VideoFrames(
            video=int(columns["video"][index]),
            reasons=tuple(str(reason) for reason in columns["reason"][index * clips : (index + 1) * clips]),
            frames=pixels.view(*shapes[index], 3),
            shown={name: on_device[name][index] for name in STUDENTS},
        )


def batch_views(videos: Iterable[VideoFrames], crop_positions: Sequence[float], size: int, number: int) -> Iterator[ViewBatch]:
    """Yields batches of ``number`` views: of each video every clip at every one of ``crop_positions``, in this order.

    A batch may hold views of several videos, or only a part of one video's. The last batch may be smaller.
    """
    views: list[tuple[VideoFrames, int, float]] = []
    for video in videos:
        for clip in range(len(video.reasons)):
            for crop_position in crop_positions:
                views.append((video, clip, crop_position))
                if len(views) == number:
                    yield _crop_views(views, size)
                    views = []
    if views:
        yield _crop_views(views, size)


def _crop_views(views: Sequence[tuple[VideoFrames, int, float]], size: int) -> ViewBatch:
    clips = {}
    for name in STUDENTS:
        frames = views[0][0].shown[name].shape[1]
        shape = (len(views), frames, size, size, 3)
        clips[name] = torch.empty(shape, dtype=torch.uint8, device=views[0][0].frames.device)
        for index, (video, clip, crop_position) in enumerate(views):
            if video.reasons[clip]:
                clips[name][index].zero_()
            else:
                clips[name][index] = video.crop(name, clip, crop_position, size)
    videos = np.array([video.video for video, _, _ in views], dtype=np.int64)
    return ViewBatch(videos, [video.reasons[clip] for video, clip, _ in views], clips)
