"""The truth that readers are held against: every frame of a file, decoded from its start by PyAV."""

from __future__ import annotations

import numpy as np

from pipeline.video.container import FrameIndex, Input, count_frames, index_packets, open_container, video_stream
from pipeline.video.exact_reader import FrameConverter


def read_index(source: Input) -> FrameIndex:
    """Of the packets where they can be believed, else counted."""
    with open_container(source) as container:
        index = index_packets(container, video_stream(container))
    if index is None:
        with open_container(source) as container:
            index = count_frames(container, video_stream(container))[0]
    return index


def every_frame(source: Input, width: int | None = None, height: int | None = None) -> list[np.ndarray]:
    """Upright RGB frames in order."""
    convert = FrameConverter(width, height)
    with open_container(source) as container:
        return [convert(frame) for frame in container.decode(video_stream(container))]
