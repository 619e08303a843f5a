"""The words with which a manifest says whether a video can be used and which decoder reads it exactly."""

from __future__ import annotations

from typing import Literal

Status = Literal[
    "ok", "missing", "empty", "not_a_video", "no_video_stream", "truncated", "undecodable", "too_short", "unsupported_codec"
]
"""``ok``, or the reason why a video cannot be used."""
Decoder = Literal["decord", "pyav", "frames"]
"""The decoder that returns the frames of a video exactly; ``frames`` stands for numbered images, which Pillow reads."""
