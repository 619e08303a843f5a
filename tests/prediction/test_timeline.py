"""Windows cover a video without gaps, and segments are the averages of what covers them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.prediction.timeline import Windows, join_segments, parse_seconds, place_windows


@settings(max_examples=30)
@given(st.floats(0, 100), st.floats(0.1, 300), st.floats(0.2, 10), st.floats(0.1, 1))
def test_windows_cover_everything_and_end_with_the_video(start: float, length: float, seconds: float, part: float) -> None:
    windows = Windows(seconds, seconds * part)
    spans = place_windows(start, start + length, windows)
    assert spans[0][0] == pytest.approx(start) and spans[-1][1] == pytest.approx(start + length)
    for one, following in pairwise(spans):
        assert one[0] <= following[0] + 1e-9 and following[0] <= one[1] + 1e-9
        assert following[0] - one[0] <= windows.hop + 1e-6
    assert len(spans) == 1 or all(end - begin == pytest.approx(seconds) for begin, end in spans)


def test_segments_by_hand() -> None:
    """Windows of 2 s every second over 4 s: the second between two windows that disagree is their mean."""
    spans = place_windows(0, 4, Windows(2, 1))
    assert spans == [(0, 2), (1, 3), (2, 4)]
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    segments = join_segments(spans, scores)
    assert [(one.start, one.end, one.label) for one in segments] == [(0, 2, 0), (2, 4, 1)]
    assert segments[0].confidence == pytest.approx((0.9 + 0.85) / 2)
    assert segments[1].confidence == pytest.approx((0.55 + 0.9) / 2)


def test_one_odd_window_among_sure_ones_is_smoothed_away() -> None:
    spans = place_windows(0, 10, Windows(2, 0.5))
    scores = np.tile([0.8, 0.2], (len(spans), 1))
    scores[8] = [0.3, 0.7]
    assert [(one.start, one.end, one.label) for one in join_segments(spans, scores)] == [(0, 10, 0)]


def test_a_time_that_no_window_covers_belongs_to_no_segment() -> None:
    """Windows in between could not be decoded."""
    segments = join_segments([(0, 2), (6, 8)], np.array([[0.9, 0.1], [0.7, 0.3]]))
    assert [(one.start, one.end) for one in segments] == [(0, 2), (6, 8)]


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("500ms", 0.5), ("1.5", 1.5), ("2min", 120), (" 3 s ", 3)])
def test_times_are_parsed(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--window") == pytest.approx(seconds)


def test_times_that_leave_parts_out_are_refused() -> None:
    for seconds, hop in ((0, 0), (1, 2), (1, 0), (float("inf"), 1), (float("nan"), 1)):
        with pytest.raises(UserError, match="--window"):
            Windows(seconds, hop)
    with pytest.raises(UserError, match="--hop two"):
        parse_seconds("two", "--hop")
