"""The reference for tests of readers: every frame of a file, decoded from its start by PyAV."""

from __future__ import annotations

import numpy as np

from pipeline.video.container import (
    VideoIndex,
    VideoInput,
    find_video_stream,
    index_by_decoding,
    index_by_packets,
    open_container,
)
from pipeline.video.exact_reader import FrameConverter


def read_index(source: VideoInput) -> VideoIndex:
    """Indexes a file by its packets where they can be trusted, else by decoding."""
    with open_container(source) as container:
        index = index_by_packets(container, find_video_stream(container))
    if index is None:
        with open_container(source) as container:
            index = index_by_decoding(container, find_video_stream(container))[0]
    return index


def every_frame(source: VideoInput, width: int | None = None, height: int | None = None) -> list[np.ndarray]:
    """Decodes all frames as upright RGB, in order of presentation."""
    convert = FrameConverter(width, height)
    with open_container(source) as container:
        return [convert(frame) for frame in container.decode(find_video_stream(container))]
