"""Keeps decoded videos in a process's memory: a small data set is then decoded once, not in every epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.files.storage import StorageError

UInt8s = npt.NDArray[np.uint8]
MAX_FRAMES = 512
"""Longer videos are never decoded whole: it could take longer than a video's time limit."""


class FrameCache:
    """Keeps all frames of videos until ``max_bytes`` of them are there.

    Then the videos that it has stay and no others are added: of a data set that is larger than the cache, that share of the
    videos is read from memory, in whatever order they come.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._videos: dict[Hashable, UInt8s | None] = {}
        """Frames [N, H, W, 3] by video; None of one that does not decode whole."""
        self._lock = threading.Lock()

    def read(self, video: Hashable, shape: tuple[int, int, int, int], decode_whole: Callable[[], UInt8s]) -> UInt8s | None:
        """Returns all frames of a video, ``shape``: [N, H, W, 3]; decoded by ``decode_whole`` if they are not here.

        Returns None for a video that is too long, finds no room, or does not decode whole. Raises StorageError if its store
        does not answer.
        """
        if video in self._videos:
            return self._videos[video]
        size = int(np.prod(shape))
        with self._lock:
            if shape[0] > MAX_FRAMES or size > self._left:
                return None
            self._left -= size
        try:
            decoded = decode_whole()
            frames = decoded if decoded.shape == shape else None
        except StorageError:  # says nothing about the video, which is asked for again
            with self._lock:
                self._left += size
            raise
        except Exception:  # what a decoder raises; the frames that are needed may decode all the same
            frames = None
        with self._lock:
            if frames is None or video in self._videos:  # another thread may have decoded it meanwhile
                self._left += size
            return self._videos.setdefault(video, frames)


@cache
def get_frame_cache(max_bytes: int) -> FrameCache:
    """Returns this process's cache of so many bytes."""
    return FrameCache(max_bytes)
