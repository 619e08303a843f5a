"""Checks which video formats can be decoded: a tiny video of each codec is made and decoded in another process."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import av
import av.video.stream
import numpy as np

from pipeline.doctor.findings import Finding
from pipeline.processes.isolation import ChildProcess, ProcessFailure, ProcessLimits

CODECS = {
    "h264": ("libx264", "mp4"),
    "hevc": ("libx265", "mp4"),
    "av1": ("libsvtav1", "mp4"),
    "vp9": ("libvpx-vp9", "webm"),
    "mpeg4": ("mpeg4", "avi"),
    "mjpeg": ("mjpeg", "avi"),
}
"""The encoder and container of each codec's video."""
FRAMES, SIDE, SECONDS = 12, 64, 30.0
REINSTALL = "install av with its own FFmpeg: pip install --force-reinstall av"


def check_decoders() -> list[Finding]:
    """Checks every codec with PyAV and, if it is installed, decord; a codec that PyAV cannot write is not checked."""
    findings, unchecked = [], []
    child = ChildProcess(try_codec, ProcessLimits(SECONDS))
    try:
        for codec in CODECS:
            result = child.call(codec)
            if isinstance(result, ProcessFailure):
                findings.append(Finding(codec, "problem", result.reason, REINSTALL))
            elif result is None:
                unchecked.append(codec)
            else:
                findings.append(describe_codec(codec, result))
    finally:
        child.stop()
    if unchecked:
        what = f"{', '.join(unchecked)}: not checked, this PyAV cannot make such a video"
        findings.append(Finding("decoding", "note", what, "jobs.prepare checks your own files"))
    return findings


def describe_codec(codec: str, results: dict[str, int | str]) -> Finding:
    """Describes which decoders found all frames; ``results`` are their numbers of frames, or what they said."""
    broken = {name: result for name, result in results.items() if result != FRAMES}
    works = " and ".join(name for name in results if name not in broken)
    if not works:
        why = "; ".join(f"{name}: {f'{text} frames' if isinstance(text, int) else text}" for name, text in broken.items())
        return Finding(codec, "problem", why, REINSTALL)
    if broken:  # what the other one says would only frighten: decord's messages are addresses of its source code
        nothing_to_do = "nothing to do: jobs.prepare chooses for each video a decoder that reads it"
        return Finding(codec, "note", f"decoded by {works}, not by {' and '.join(broken)}", nothing_to_do)
    return Finding(codec, "ok", f"decoded by {works}")


def try_codec(codec: str) -> dict[str, int | str] | None:
    """Makes and decodes a video, in a process whose messages on stderr nobody sees: encoders write pages of them.

    Returns how many frames each decoder finds, or what it says; None if this PyAV cannot encode the codec.
    """
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    encoder, container = CODECS[codec]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"tiny.{container}"
        try:
            make_video(path, encoder)
        except (av.FFmpegError, ValueError):  # this build has no such encoder
            return None
        names = ["pyav", *(["decord"] if importlib.util.find_spec("decord") else [])]
        return {name: count_frames(name, str(path)) for name in names}


def make_video(path: Path, encoder: str) -> None:
    """Writes a video of a moving square. Raises av.FFmpegError or ValueError if this PyAV lacks the encoder."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=12)
        assert isinstance(stream, av.video.stream.VideoStream)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        for index in range(FRAMES):
            frame = np.zeros((SIDE, SIDE, 3), np.uint8)
            frame[16:32, 4 * index : 4 * index + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def count_frames(decoder: str, path: str) -> int | str:
    """Returns how many frames a decoder finds, or what it says."""
    try:
        if decoder == "decord":
            import decord

            reader = decord.VideoReader(path, num_threads=1)
            return len(reader.get_batch(range(len(reader))).asnumpy())
        with av.open(path) as container:
            return sum(1 for _ in container.decode(video=0))
    except Exception as error:  # decoders raise many types; each means that this codec does not work
        return f"{type(error).__name__}: {(str(error) or 'no reason').splitlines()[0][:120]}"
