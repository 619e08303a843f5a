"""Small real videos whose frames say their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.processes.isolation import map_in_processes

BITS = 8


def number_frame(number: int, width: int, height: int) -> np.ndarray:
    """[H, W, 3] uint8: the number's bits as columns, black or white, with a gray frame around them."""
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    for bit in range(BITS):
        left, right = width * (bit + 1) // (BITS + 2), width * (bit + 2) // (BITS + 2)
        image[height // 4 : height * 3 // 4, left:right] = 255 * (number >> bit & 1)
    return image


def read_number(frame: np.ndarray) -> int:
    """The number of a decoded frame of any size whose full width is shown."""
    height, width = frame.shape[:2]
    row = frame[height // 2, :, 1]
    return sum(int(row[int(width * (bit + 1.5) / (BITS + 2))] > 128) << bit for bit in range(BITS))


def write_numbers(
    path: Path,
    frames: int = 50,
    fps: str = "25",
    size: tuple[int, int] = (160, 96),
    gop: int = 12,
    steps: list[int] | None = None,
) -> Path:
    """An H.264 video of numbered frames; ``steps`` gives each frame's time in units of 1/1000 s for a variable rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.options = {"crf": "18", "preset": "veryfast"}
        if steps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(number_frame(number, *size), format="rgb24")
            if steps is not None:
                frame.pts, frame.time_base = steps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


MODULES = (
    "pipeline.video.synthetic", "pipeline.video.probe", "pipeline.prepare.resized_copies", "pipeline.labeling.small_clips",
    "pipeline.report.pages.contact_sheet",
)  # fmt: skip
"""Those that give their work to ``map_in_processes``."""


def leave_out_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process render, probe, copy and decode, because to start others takes longer than small videos do."""
    for module in MODULES:
        monkeypatch.setattr(f"{module}.map_in_processes", _map_here)


def bring_back_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes ``leave_out_processes``."""
    for module in MODULES:
        monkeypatch.setattr(f"{module}.map_in_processes", map_in_processes)


def _map_here(function: Callable[[Any], Any], items: Sequence[Any], *_: Any, **__: Any) -> Iterator[tuple[int, Any]]:
    yield from enumerate(map(function, items))
