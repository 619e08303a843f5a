"""Decodes test videos, each once for all of its clips. Decode tasks import this, so it does without torch."""

from __future__ import annotations

import numpy as np

from pipeline.clips.decode import DecodeError, UInt8s
from pipeline.clips.source import Columns, VideoSource
from pipeline.config import STUDENTS
from pipeline.seeds import Floats, Ints


def decode_videos(source: VideoSource, videos: Ints, moments: Floats) -> Columns:
    """Decodes V videos once each, for their clips at all K ``moments`` (0 to 1).

    Returns ``video`` [V]; ``pixels`` uint8 [bytes], all videos' frames one after the other; ``shape`` [V, 3], each video's
    number of frames, height and width; ``primary`` and ``auxiliary`` [V, K, T], which of its video's frames each clip shows;
    and ``reason`` [V K], why a clip could not be decoded, or "".
    """
    decoded = [_decode_video(source, int(video), moments) for video in videos]
    pixels = [frames.reshape(-1) for frames, _, _ in decoded]
    return {
        "video": np.asarray(videos, dtype=np.int64),
        "pixels": pixels[0] if len(pixels) == 1 else np.concatenate(pixels),
        "shape": np.array([frames.shape[:3] for frames, _, _ in decoded], dtype=np.int64),
        **{name: np.stack([shown[student] for _, shown, _ in decoded]) for student, name in enumerate(STUDENTS)},
        "reason": np.array([reason for _, _, reasons in decoded for reason in reasons]),
    }


def _decode_video(source: VideoSource, video: int, moments: Floats) -> tuple[UInt8s, tuple[Ints, ...], list[str]]:
    """Decodes frames [N, H, W, 3]; also returns which of them each student's K clips show, and K reasons.

    If it fails in one pass, it is tried clip by clip: of a file that is damaged at its end the earlier clips are kept, and a
    decoder's limits of time and memory are meant for one clip.
    """
    try:
        frames_NHWC, shown = source.decode_moments(video, moments.tolist())
        return frames_NHWC, shown, [""] * len(moments)
    except DecodeError:
        pass
    parts: list[UInt8s] = []
    shown = tuple(np.zeros((len(moments), clip.frames), dtype=np.int64) for clip in source.clips)
    reasons = []
    for index, moment in enumerate(moments.tolist()):
        try:
            frames_NHWC, shown_here = source.decode_moments(video, [moment])
        except DecodeError as error:
            reasons.append(str(error) or "unknown")
            continue
        before = sum(map(len, parts))
        parts.append(frames_NHWC)
        reasons.append("")
        for all_KT, one_1T in zip(shown, shown_here, strict=True):
            all_KT[index] = before + one_1T[0]
    return np.concatenate(parts) if parts else np.zeros((0, source.size, source.size, 3), np.uint8), shown, reasons
