"""A decoder that hangs, crashes, leaks or eats memory on videos whose names ask for it; any other video it decodes."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from pipeline.clips import decode, isolated_decode
from pipeline.video import probe

hoard: list[bytes] = []
decode_clips, decode_moments = decode.decode_clips, decode.decode_moments


def decode_or_misbehave(video: decode.Video, *rest: Any) -> Any:
    """Used instead of ``decode_clips``."""
    _misbehave(os.path.basename(video.location))
    return decode_clips(video, *rest)


def frames_or_misbehave(video: decode.Video, *rest: Any) -> Any:
    """Used instead of ``decode_moments``."""
    _misbehave(os.path.basename(video.location))
    return decode_moments(video, *rest)


def probe_or_misbehave(item: probe.ProbeItem) -> probe.Probe:
    """Used instead of ``reuse_or_probe``."""
    _misbehave(os.path.basename(item[0]))
    return probe.probe_file(*item[:2])


def find_modules(names: set[str]) -> set[str]:
    """Which of these modules the child process that calls it has imported; that takes most of the time of its start."""
    return names & set(sys.modules)


def _misbehave(name: str) -> None:
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


def install() -> None:
    """Make this process's isolated decoders use it."""
    isolated_decode.decode_clips, isolated_decode.decode_moments = decode_or_misbehave, frames_or_misbehave
    isolated_decode.get_isolated_decoder.cache_clear()
