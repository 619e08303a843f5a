"""The test protocol: K clips evenly spaced in time x C crops, with averaged scores. Pure index arithmetic."""

from __future__ import annotations

import numpy as np

from pipeline.seeds import Floats, Ints

CROP_POSITIONS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}
"""By number of crops, where they lie along the frame's longer side, from 0 to 1."""


def compute_clip_moments(clips: int) -> Floats:
    """Computes where in time the clips of a video lie, from 0 to 1."""
    return np.asarray((np.arange(clips) + 0.5) / clips)


def list_views(videos: Ints, clips: int, crops: int) -> tuple[Ints, Floats, Floats]:
    """Computes manifest row, moment and crop position of every view: each video's ``clips * crops`` views in a row."""
    crop_positions = np.array(CROP_POSITIONS[crops])
    grid = np.stack(np.meshgrid(compute_clip_moments(clips), crop_positions, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.repeat(videos, len(grid)), np.tile(grid[:, 0], len(videos)), np.tile(grid[:, 1], len(videos))


def average_views(videos: Ints, scores_NK: Floats, usable: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[Ints, Floats]:
    """Averages the scores of each video's usable views; videos without any are left out. Returns (videos [V], scores [V,
    K])."""
    usable_videos, indices = np.unique(videos[usable], return_inverse=True)
    sums = np.zeros((len(usable_videos), scores_NK.shape[1]))
    np.add.at(sums, indices, scores_NK[usable])
    return usable_videos, sums / np.bincount(indices, minlength=len(usable_videos))[:, None]
