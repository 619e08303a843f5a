"""What can be told of a video file: whether it can be used, and who decodes it exactly. The words are those of the manifest."""

from __future__ import annotations

from typing import Literal

Status = Literal[
    "ok", "missing", "empty", "not_a_video", "no_video_stream", "truncated", "undecodable", "too_short", "unsupported_codec"
]
"""``ok``, or why a file cannot be used."""
Decoder = Literal["decord", "pyav", "frames"]
"""Who returns the frames of a file exactly; ``frames`` are numbered images."""
