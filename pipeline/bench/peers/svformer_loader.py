"""(a) SVFormer (Xing et al., CVPR 2023; its loader is that of VideoMAE) and TimeSformer (Bertasius et al., ICML 2021).

Every view opens its video with decord at the file's size. PIL images are resized, cropped, mirrored and augmented on the CPU by
timm's RandAugment, then become float tensors. A network passes labeled, weak and strong views one after the other.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from pipeline.bench.peers.requests import VideoRequest, ViewRequest, build_view_maker
from pipeline.clips.decode import UInt8s, Video
from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.sampling import compute_frame_starts, find_frames
from pipeline.config import WeakSection
from pipeline.seeds import Floats
from pipeline.video.decord_check import decord


def read_decord_frames(video: Video, times: Floats) -> UInt8s:
    """Reads the frames on screen at these times in seconds, uint8 [T, H, W, 3], at about the file's size."""
    # at the file's own size decord fails on widths such as 72 of the synthetic videos, whose rows it pads
    width = -(-video.width // 32) * 32
    reader = decord.VideoReader(video.location, width=width, height=video.height, num_threads=1)
    starts = compute_frame_starts(len(reader), video.fps)
    if video.variable_fps:
        timestamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
        starts = timestamps - timestamps[0]
    frames: UInt8s = reader.get_batch(find_frames(times, starts)).asnumpy()
    return frames


def _make_view(video_request: VideoRequest, request: ViewRequest) -> torch.Tensor:
    generator = np.random.default_rng(request.seed)
    size, section = request.clip.size, video_request.views.strong
    frames = [Image.fromarray(frame) for frame in read_decord_frames(video_request.video, request.times)]
    frames = _crop_and_flip(frames, size, video_request.views.weak, generator)
    if request.strong and section.ops:
        augment = rand_augment_transform(f"rand-m{round(10 * section.magnitude)}-n{section.ops}-mstd0.5-inc1", {})
        frames = [_augment(augment, frame, request.seed) for frame in frames]
    clip_THWC = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).float() / 255
    clip_THWC = (clip_THWC - torch.tensor(MEAN)) / torch.tensor(STD)
    if request.strong and section.cutout:
        side = round(size * section.cutout / 2)
        top, left = generator.integers(0, size - side + 1, 2)
        clip_THWC[:, top : top + side, left : left + side] = 0
    return clip_THWC.permute(3, 0, 1, 2).contiguous()


def _augment(augment: object, frame: Image.Image, seed: int) -> Image.Image:
    """Augments a frame like all others of its clip: timm draws from the generators of the process, which are seeded here."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    changed: Image.Image = augment(frame)  # type: ignore[operator]
    return changed


def _crop_and_flip(
    frames: list[Image.Image], size: int, section: WeakSection, generator: np.random.Generator
) -> list[Image.Image]:
    """Scales the shorter side at random, cuts a random square and mirrors it at random."""
    short = round(size / generator.uniform(section.min_scale, 1))
    width, height = frames[0].size
    scaled = (max(size, round(width * short / min(width, height))), max(size, round(height * short / min(width, height))))
    left, top = (int(generator.integers(0, edge - size + 1)) for edge in scaled)
    cut = [frame.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size)) for frame in frames]
    if generator.random() >= section.flip:
        return cut
    return [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in cut]


make_svformer_views = build_view_maker(_make_view)
