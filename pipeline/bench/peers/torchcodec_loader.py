"""(d) torchcodec, PyTorch's own decoder, in a DataLoader: one open a video for all of its views, scaled while it is decoded.

It is optional (``pip install -e .[torchcodec]``) and needs FFmpeg's shared libraries.
"""

from __future__ import annotations

import numpy as np
import torch
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from pipeline.bench.peers.requests import Columns, VideoRequest
from pipeline.bench.peers.tensor_views import view_of_frames
from pipeline.clips.decode import Video, compute_scaled_size
from pipeline.clips.sampling import SLACK
from pipeline.seeds import Floats


def read_frames(video: Video, times: Floats, size: int) -> torch.Tensor:
    """uint8 [T, 3, H, W] frames on screen at these times, with the shorter side scaled to ``size``."""
    width, height = compute_scaled_size(video.width, video.height, size)
    decoder = VideoDecoder(video.location, num_ffmpeg_threads=1, transforms=[Resize((height, width))])
    begins, ends = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    seconds = np.minimum(begins + times + SLACK, ends - SLACK)
    frames: torch.Tensor = decoder.get_frames_played_at(seconds=seconds.tolist()).data
    return frames


def make_views(asked: VideoRequest) -> Columns:
    """By the request's name."""
    times = np.unique(np.concatenate([request.times for request in asked.requests]))
    frames_TCHW = read_frames(asked.video, times, asked.decode_size)
    return {
        request.name: view_of_frames(frames_TCHW[np.searchsorted(times, request.times)], asked, request)
        for request in asked.requests
    }
