"""Decodes in child processes that have a time and a memory limit, and are kept from clip to clip.

A decoder that hangs, crashes or leaks ends its process, not the decode task, which Ray would start again for ever on the same
video. Clips come back in shared memory and are copied from there into the block, so that isolation costs one copy more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clips.decode import DecodeError, UInt8s, Video, decode_clips, decode_moments
from pipeline.clips.sampling import FramesAtRate, Moment
from pipeline.files import storage
from pipeline.processes.isolation import ChildProcess, ProcessFailure, ProcessLimits, compute_seconds_left
from pipeline.seeds import Ints
from pipeline.video import video_file

if TYPE_CHECKING:  # a child would import it in as much time as all of decoding
    from pipeline.config import ClipSection

MAX_REMEMBERED = 10_000
"""How many videos are remembered as impossible to decode."""


class IsolatedDecoder:
    """Decodes in child processes: as many as threads call at the same time.

    Each of them keeps ``cache_bytes`` of decoded videos.
    """

    def __init__(self, limits: ProcessLimits, cache_bytes: int = 0) -> None:
        self.limits, self.cache_bytes = limits, cache_bytes
        self._idle: list[ChildProcess] = []
        self._lost: dict[Video, str] = {}
        self._lock = threading.Lock()

    def decode_clips(
        self, video: Video, moment: Moment, crop_position: float, clips: Sequence[ClipSection], size: int, out: Sequence[UInt8s]
    ) -> None:
        """Calls ``decode_clips`` in a child, and copies the clips into ``out``.

        Raises DecodeError, also after a hang, a crash, or too much memory.

        Videos that hang or crash are remembered, so that a hang costs its time limit once in a process and not once an epoch.
        """
        request = (video, moment, crop_position, _select_sampling(clips), size, self.cache_bytes)
        with self._call_child(decode_clips, *request) as result:
            for array, clip in zip(out, result, strict=True):
                np.copyto(array, clip)

    def decode_moments(
        self, video: Video, moments: Sequence[Moment], clips: Sequence[ClipSection], size: int
    ) -> tuple[UInt8s, tuple[Ints, ...]]:
        """Calls ``decode_moments`` in a child. Raises DecodeError as ``decode_clips`` does.

        A video that hangs or crashes is remembered only if there was a single moment: of several ones each alone may decode.
        """
        request = (video, moments, _select_sampling(clips), size, self.cache_bytes)
        with self._call_child(decode_moments, *request, remember=len(moments) == 1) as (frames, shown):
            return frames.copy(), tuple(indices.copy() for indices in shown)

    @contextmanager
    def _call_child(self, function: Callable[..., Any], video: Video, *arguments: Any, remember: bool = True) -> Iterator[Any]:
        """Yields the result of ``function(video, *arguments)``, which lies in the child's memory. Raises DecodeError.

        A video is given up after its second crash: the first may have been the kernel's choice on a machine out of memory,
        or caused by memory that earlier videos had leaked. One on a store is also given a second chance after a hang, which
        may have been the store's. Raises StorageError if the store does not answer.
        """
        if video in self._lost:
            raise DecodeError(self._lost[video])
        with self._lock:
            child = self._idle.pop() if self._idle else ChildProcess(call_in_child, self.limits)
        try:
            result = child.call(function, video, *arguments)
            on_store = storage.is_remote(video.location) and isinstance(result, ProcessFailure)
            if on_store:
                _require_store(video.location)
            if isinstance(result, ProcessFailure) and (result.is_worth_retrying or on_store):
                result = child.call(function, video, *arguments)
            if isinstance(result, ProcessFailure):
                is_its_fault = compute_seconds_left() > 0  # else the caller had no more time
                if remember and is_its_fault and len(self._lost) < MAX_REMEMBERED:
                    self._lost[video] = f"decoder: {result.reason}"
                raise DecodeError(f"decoder: {result.reason}")
            yield result
        finally:
            with self._lock:
                self._idle.append(child)


def _select_sampling(clips: Sequence[ClipSection]) -> list[FramesAtRate]:
    """Selects what a child needs of the clips: to receive whole sections it would import the configuration."""
    return [FramesAtRate(clip.frames, clip.fps) for clip in clips]


def _require_store(location: str) -> None:
    """Raises StorageError if the store does not answer; what else is wrong with the file, decoding says."""
    try:
        video_file.get_file_info(location)
    except storage.StorageError:
        raise
    except OSError:
        pass


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls ``function``; this is what a child runs, to which ``function`` is sent by its name."""
    return function(*arguments)


@cache
def get_isolated_decoder(limits: ProcessLimits, cache_bytes: int) -> IsolatedDecoder:
    """Returns this process's decoder for these limits, whose children live on from block to block."""
    return IsolatedDecoder(limits, cache_bytes)
