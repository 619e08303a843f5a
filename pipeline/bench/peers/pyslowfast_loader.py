"""(b) PySlowFast (Fan et al., 2020): every view opens its video with PyAV and decodes the whole span that the clip lies in.

It seeks to the key frame before the span, turns every frame of the span into RGB at the file's size, and takes those that the
clip shows. These become float before they are resized, cropped, mirrored and augmented as tensors.
"""

from __future__ import annotations

import av
import numpy as np
import torch

from pipeline.bench.peers.requests import VideoRequest, ViewRequest, build_view_maker
from pipeline.bench.peers.tensor_views import make_view_of_frames
from pipeline.clips.decode import UInt8s
from pipeline.clips.sampling import SLACK
from pipeline.seeds import Floats

MARGIN = 1024
"""The number of ticks of the stream's time base by which the seek aims earlier."""


def read_span(location: str, times: Floats) -> UInt8s:
    """Reads the frames on screen at these times in seconds, uint8 [T, H, W, 3], by decoding everything between them."""
    frame_times: list[float] = []
    frames: list[UInt8s] = []
    with av.open(location) as container:
        (stream,) = container.streams.video[:1]
        assert stream.time_base is not None
        begins = stream.start_time or 0
        aim = begins + int(times[0] / stream.time_base) - MARGIN
        container.seek(max(begins, aim), stream=stream, backward=True, any_frame=False)
        before: av.VideoFrame | None = None
        for frame in container.decode(stream):
            assert frame.pts is not None
            at = float((frame.pts - begins) * stream.time_base)
            if at > times[0] + SLACK and not frames and before is not None:
                frames.append(_pixels(before))  # it is on screen when the span begins
            if at > times[-1] + SLACK:
                break
            if frames:
                frames.append(_pixels(frame))
                frame_times.append(at)
            else:
                before, frame_times = frame, [at]
    if not frames and before is not None:
        frames.append(_pixels(before))
    shown = np.searchsorted(np.asarray(frame_times), times + SLACK, side="right") - 1
    return np.stack([frames[index] for index in np.clip(shown, 0, len(frames) - 1)])


def _pixels(frame: av.VideoFrame) -> UInt8s:
    return np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def _make_view(video_request: VideoRequest, request: ViewRequest) -> torch.Tensor:
    frames_THWC = torch.from_numpy(read_span(video_request.video.location, request.times)).float() / 255
    return make_view_of_frames(frames_THWC.permute(0, 3, 1, 2), video_request, request)


make_pyslowfast_views = build_view_maker(_make_view)
