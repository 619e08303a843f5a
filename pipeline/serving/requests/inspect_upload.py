"""Looks at an uploaded file before anything is decoded at length: whether it is a video, and of what size.

This runs in a child process, because it opens files of any origin. FFmpeg guesses the format from the content, and some formats
are lists of other files or of addresses, which it would open: only containers that hold everything themselves are accepted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from pipeline.processes.isolation import ChildProcess, ProcessFailure, ProcessLimits
from pipeline.serving.requests.limits import Limits, Refusal
from pipeline.video.container import UnusableVideoError, find_video_stream, summarize_error
from pipeline.video.probe import Probe, ProbeOptions, probe_file

FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg")
"""FFmpeg's names of the accepted containers; mov stands for all of its family (mp4, m4a, 3gp, 3g2, mj2)."""
HEAD_BYTES = 4096
LONGEST_SIDE = 4
"""Largest ratio of the longer side of a frame to its shorter one. Frames are scaled by their shorter side: a file of 3 KB
whose frames have 600 x 2 pixels would take gigabytes."""
WRONG_KIND = ("not_a_video", "no_video_stream", "unsupported_codec")
"""Statuses of a probe that mean that the file is not a video that this program reads; the others, that it is a bad one."""


def begins_like_container(head: bytes) -> bool:
    """Whether the first bytes of a file are those of one of ``FORMATS``."""
    boxes = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot", b"styp")
    starts = (b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\0\0\1\xba", b"\0\0\1\xb3")
    transport = any(len(head) > first + 2 * step and head[first] == head[first + step] == head[first + 2 * step] == 0x47
                    for first, step in ((0, 188), (4, 192)))  # fmt: skip
    return head[4:8] in boxes or head.startswith(starts) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") or transport


def inspect_upload(path: str, limits: Limits) -> Probe:
    """Probes an uploaded file. Raises Refusal if it is not a video, a damaged one, or one beyond the limits.

    What the file says of itself is compared with the limits first, then what its packets say, then what was probed.
    """
    with open(path, "rb") as file:
        if not begins_like_container(file.read(HEAD_BYTES)):
            names = "MP4, MOV, MKV, WebM, AVI, MPEG, TS, FLV, WMV, OGV"
            raise Refusal(415, "not_a_video", f"the file is in no video format that is accepted ({names})")
    try:
        _check_claims(path, limits)
        # PyAV alone: decord 0.6 brings FFmpeg 4.1, which is of 2018
        probe = probe_file(path, ProbeOptions(decoder="pyav"))
    except Refusal:
        raise
    except UnusableVideoError as error:
        raise _make_refusal(error.status, str(error), path) from None
    except MemoryError:
        raise Refusal(422, "too_costly", "the video takes too much memory to decode") from None
    except Exception as error:  # PyAV raises many types, UnicodeDecodeError among them; all mean that this file is bad
        raise _make_refusal("undecodable", f"{type(error).__name__}: {summarize_error(error)}", path) from None
    if probe.status != "ok":
        raise _make_refusal(probe.status, probe.reason or probe.status, path)
    check_size(probe.width, probe.height, probe.duration, probe.frames, limits)
    return probe


def check_size(width: int, height: int, seconds: float, frames: int, limits: Limits) -> None:
    """Raises Refusal with status 422 if a video is beyond the limits."""
    if width * height > limits.video_pixels:
        raise Refusal(422, "too_many_pixels", f"frames of {width}x{height} pixels; up to {limits.video_pixels:,} are accepted")
    if max(width, height) > LONGEST_SIDE * min(width, height) > 0:
        what = f"frames of {width}x{height} pixels; the longer side may be {LONGEST_SIDE} times the shorter one"
        raise Refusal(422, "too_narrow", what)
    if seconds > limits.video_seconds:
        raise Refusal(422, "too_long", f"the video lasts {seconds:.1f} s; up to {limits.video_seconds:g} s are accepted")
    if frames > limits.video_frames:
        raise Refusal(422, "too_many_frames", f"the video has more than {limits.video_frames:,} frames")


def _check_claims(path: str, limits: Limits) -> None:
    """Opens the file, and reads its packets without decoding them."""
    with _open(path) as container:
        stream = find_video_stream(container)
        seconds = [float(container.duration or 0) / av.time_base]
        if stream.duration and stream.time_base:
            seconds.append(float(stream.duration * stream.time_base))
        width, height = stream.codec_context.width, stream.codec_context.height
        check_size(width, height, max(seconds), stream.frames, limits)
        packets = 0
        for packet in container.demux(stream):
            packets += packet.size > 0
            if packets > limits.video_frames:
                check_size(width, height, 0.0, packets, limits)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "enable_drefs": "0"}
    try:
        container = av.open(path, options=options)
    except av.FFmpegError as error:
        raise UnusableVideoError("undecodable", f"the container cannot be read ({summarize_error(error)})") from None
    with container:
        yield container


def _make_refusal(status: str, reason: str, path: str) -> Refusal:
    if status == "empty":
        return Refusal(400, status, "the file has no bytes")
    return Refusal(415 if status in WRONG_KIND else 422, status, hide_path(reason, path))


def hide_path(text: str, path: str | Path) -> str:
    """Removes the path of an upload from a text: where files lie on the server is nobody's business."""
    return text.replace(f": '{path}'", "").replace(str(path), "the upload")[:500]


class Inspectors:
    """Child processes that run ``inspect_upload``, as many as there are calls at the same time, and are kept."""

    def __init__(self, limits: ProcessLimits, function: Callable[..., Any] = inspect_upload) -> None:
        self.limits, self.function = limits, function
        self._idle: list[ChildProcess] = []
        self._lock = threading.Lock()

    def inspect(self, path: Path, limits: Limits) -> Probe:
        """Inspects a file. Raises Refusal, also for a file that makes its process crash, hang or take too much memory."""
        with self._lock:
            child = self._idle.pop() if self._idle else ChildProcess(self.function, self.limits)
        try:
            result = child.call(str(path), limits)
        except MemoryError:
            raise Refusal(422, "too_costly", "the file takes too much memory to examine") from None
        finally:
            with self._lock:
                self._idle.append(child)
        if isinstance(result, ProcessFailure):
            raise Refusal(422, "undecodable", f"the file cannot be examined: {result.reason}")
        assert isinstance(result, Probe)
        return result

    def stop(self) -> None:
        """Ends the processes that are idle."""
        with self._lock:
            for child in self._idle:
                child.stop()
            self._idle.clear()
