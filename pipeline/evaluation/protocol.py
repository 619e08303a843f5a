"""The test protocol: K clips evenly spaced in time x C crops, scores averaged. Pure index arithmetic."""

from __future__ import annotations

import numpy as np

from pipeline.seeds import Floats, Ints

WINDOWS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}
"""Places of the square window on the longer side."""


def clip_moments(clips: int) -> Floats:
    """Where in time the clips of a video lie, 0 to 1."""
    return np.asarray((np.arange(clips) + 0.5) / clips)


def view_grid(videos: Ints, clips: int, crops: int) -> tuple[Ints, Floats, Floats]:
    """Manifest row, moment and window of every view: each video's ``clips * crops`` views once, side by side."""
    windows = np.array(WINDOWS[crops])
    grid = np.stack(np.meshgrid(clip_moments(clips), windows, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.repeat(videos, len(grid)), np.tile(grid[:, 0], len(videos)), np.tile(grid[:, 1], len(videos))


def average_views(videos: Ints, scores_NK: Floats, usable: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[Ints, Floats]:
    """Mean score over each video's usable views; videos without any are left out. Returns (videos, scores_VK)."""
    kept, places = np.unique(videos[usable], return_inverse=True)
    sums = np.zeros((len(kept), scores_NK.shape[1]))
    np.add.at(sums, places, scores_NK[usable])
    return kept, sums / np.bincount(places, minlength=len(kept))[:, None]
