"""A plan of blank videos, which cost no decoding, and the processes of a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.clips.source import VideoSource, open_source
from pipeline.config import load_config

FRAMES, SIZE = 4, 40


class Blank(VideoSource):
    """Decodes nothing: clips say their row. Only what moves them is under test."""

    def decode_rows(self, rows, pool=None):  # type: ignore[no-untyped-def]
        slots = (len(rows), self.plan.slots)
        clips = np.broadcast_to((rows % 251).astype(np.uint8)[:, None, None, None, None, None], (*slots, FRAMES, SIZE, SIZE, 3))
        return {
            "row": rows,
            "video": self.plan.choose_videos(np.maximum(rows, 0)),
            "label": np.zeros(slots, np.int64),
            "primary": clips.copy(),
            "auxiliary": clips.copy(),
            "quarantined": np.array(["[]"] * len(rows)),
            "seconds": np.zeros(len(rows)),
        }


def blank(tiny: Path, *words: str):  # type: ignore[no-untyped-def]
    config = load_config(tiny / "tiny.yaml", ["data.isolate_decoder=false", *words])
    return Blank(**vars(open_source(config)[0])), config


def is_child(path: Path) -> bool:
    pid = int(path.parent.name)
    try:
        while pid > 1 and pid != os.getpid():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return False
    return pid == os.getpid()
