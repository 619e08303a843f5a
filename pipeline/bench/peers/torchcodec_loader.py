"""(d) torchcodec, PyTorch's own decoder, in a DataLoader: one open a video for all of its views, scaled while it is decoded.

It is optional (``pip install -e .[torchcodec]``) and needs FFmpeg's shared libraries.
"""

from __future__ import annotations

import numpy as np
import torch
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from pipeline.bench.peers.requests import TensorColumns, VideoRequest
from pipeline.bench.peers.tensor_views import make_view_of_frames
from pipeline.clips.decode import Video, compute_scaled_size
from pipeline.clips.sampling import SLACK
from pipeline.seeds import Floats


def read_torchcodec_frames(video: Video, times: Floats, size: int) -> torch.Tensor:
    """Reads the frames on screen at these times in seconds, uint8 [T, 3, H, W], with a shorter side of ``size`` pixels."""
    width, height = compute_scaled_size(video.width, video.height, size)
    decoder = VideoDecoder(video.location, num_ffmpeg_threads=1, transforms=[Resize((height, width))])
    begins, ends = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    seconds = np.minimum(begins + times + SLACK, ends - SLACK)
    frames: torch.Tensor = decoder.get_frames_played_at(seconds=seconds.tolist()).data
    return frames


def make_torchcodec_views(video_request: VideoRequest) -> TensorColumns:
    """Makes all views of one video, by the names of their requests."""
    times = np.unique(np.concatenate([request.times for request in video_request.requests]))
    frames_TCHW = read_torchcodec_frames(video_request.video, times, video_request.decode_size)
    return {
        request.name: make_view_of_frames(frames_TCHW[np.searchsorted(times, request.times)], video_request, request)
        for request in video_request.requests
    }
