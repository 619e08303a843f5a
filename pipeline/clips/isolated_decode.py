"""Decoding where it can do no harm: in child processes with a time and a memory limit, kept from clip to clip.

A decoder that hangs, crashes or leaks costs its process, not the decode task: Ray would start that task again for ever,
on the same video. Clips come back by shared memory and are copied from there to their place in the block, so that the
way costs one copy in the child.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from pipeline.clips.decode import DecodeError, UInt8s, Video, decode_clips, decode_frames
from pipeline.clips.sampling import Moment
from pipeline.config import ClipSection
from pipeline.processes.isolation import ChildProcess, ProcessFailure, ProcessLimits
from pipeline.seeds import Ints

MAX_KNOWN = 10_000
"""Videos that are remembered as lost."""


class Guard:
    """As many decoding processes as threads call at once."""

    def __init__(self, limits: ProcessLimits) -> None:
        self.limits = limits
        self._idle: list[ChildProcess] = []
        self._lost: dict[Video, str] = {}
        self._lock = threading.Lock()

    def decode(
        self, video: Video, moment: Moment, crop_position: float, clips: Sequence[ClipSection], size: int, out: Sequence[UInt8s]
    ) -> None:
        """``decode_clips`` in a child, into ``out``. Raises DecodeError, also for a hang, a crash and too much memory.

        Videos that hang or crash are remembered, so that a hang costs its time limit once in a process and not once an epoch.
        """
        with self._result(decode_clips, video, moment, crop_position, clips, size) as result:
            for array, clip in zip(out, result, strict=True):
                np.copyto(array, clip)

    def decode_frames(
        self, video: Video, moments: Sequence[Moment], clips: Sequence[ClipSection], size: int
    ) -> tuple[UInt8s, tuple[Ints, ...]]:
        """``decode_frames`` in a child. Raises DecodeError as ``decode`` does.

        What hangs or crashes is remembered if it was a single moment: a pass over several ones says nothing of each.
        """
        with self._result(decode_frames, video, moments, clips, size, remember=len(moments) == 1) as (frames, shown):
            return frames.copy(), tuple(each.copy() for each in shown)

    @contextmanager
    def _result(self, function: Callable[..., Any], video: Video, *words: Any, remember: bool = True) -> Iterator[Any]:
        """``function(video, *words)``, in memory that is the child's. Raises DecodeError.

        A crash is believed when it happens twice: the first may have been the kernel's choice on a machine without memory, or
        the memory that videos before it had leaked.
        """
        if video in self._lost:
            raise DecodeError(self._lost[video])
        with self._lock:
            child = self._idle.pop() if self._idle else ChildProcess(call, self.limits)
        try:
            result = child.call(function, video, *words)
            if isinstance(result, ProcessFailure) and result.is_worth_retrying:
                result = child.call(function, video, *words)
            if isinstance(result, ProcessFailure):
                if remember and len(self._lost) < MAX_KNOWN:
                    self._lost[video] = f"decoder: {result.reason}"
                raise DecodeError(f"decoder: {result.reason}")
            yield result
        finally:
            with self._lock:
                self._idle.append(child)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a child runs: ``function`` comes by its name."""
    return function(*arguments)


@cache
def guard(limits: ProcessLimits) -> Guard:
    """This process's guard: its children live from block to block."""
    return Guard(limits)
