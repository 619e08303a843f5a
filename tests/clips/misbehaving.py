"""A decoder that hangs, crashes, leaks or eats memory on videos whose names ask for it; any other video it decodes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from pipeline.clips import decode, guard

hoard: list[bytes] = []
decode_clips = decode.decode_clips


def decode_or_misbehave(video: decode.Video, *rest: Any) -> Any:
    name = os.path.basename(video.location)
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("abort"):
        os.abort()
    if name.startswith("leak"):
        hoard.append(os.urandom(2**20) * 100)
    while name.startswith("eat"):
        hoard.append(os.urandom(2**20) * 50)
        time.sleep(0.01)
    return decode_clips(video, *rest)


def install() -> None:
    """Make this process's guards use it."""
    guard.decode_clips = decode_or_misbehave
    guard.guard.cache_clear()
