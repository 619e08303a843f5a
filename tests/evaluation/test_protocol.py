from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.protocol import average_views, list_views


@given(
    videos=st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=20),
    clips=st.integers(1, 10),
    crops=st.sampled_from([1, 3]),
)
def test_every_view_of_every_video_once(videos: list[int], clips: int, crops: int) -> None:
    rows, moments, windows = list_views(np.array(videos), clips, crops)
    views = set(zip(rows.tolist(), moments.tolist(), windows.tolist(), strict=True))
    assert len(rows) == len(views) == len(videos) * clips * crops
    assert set(rows.tolist()) == set(videos)
    assert moments.min() > 0 and moments.max() < 1
    assert set(windows.tolist()) == ({0.5} if crops == 1 else {0.0, 0.5, 1.0})


def test_moments_are_evenly_spaced() -> None:
    _, moments, _ = list_views(np.array([7]), 4, 1)
    assert moments.tolist() == [0.125, 0.375, 0.625, 0.875]


def test_scores_are_averaged_over_usable_views_whatever_their_order() -> None:
    videos = np.array([5, 3, 5, 3, 9])
    scores = np.array([[1.0, 0.0], [0.2, 0.8], [0.0, 1.0], [9.0, 9.0], [7.0, 7.0]])
    kept, mean = average_views(videos, scores, np.array([True, True, True, False, False]))
    assert kept.tolist() == [3, 5]
    assert mean.tolist() == [[0.2, 0.8], [0.5, 0.5]]
