from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clips.sampling import compute_clip_times, compute_frame_starts, find_frames
from pipeline.config import ClipSection

SLOW, FAST = ClipSection(frames=8, fps=8, size=8), ClipSection(frames=8, fps=16, size=8)
RATES = [15.0, 23.976, 25.0, 29.97, 30.0, 50.0, 59.94]


@pytest.mark.parametrize("fps", RATES)
def test_the_same_seconds_at_any_frame_rate(fps: float) -> None:
    times = compute_clip_times(0.3, 0.0, 10.0, [SLOW, FAST])
    starts = compute_frame_starts(int(10 * fps), fps)
    for wanted in times:
        shown = starts[find_frames(wanted, starts)]
        assert (wanted - shown >= -2e-6).all()
        assert (wanted - shown < 1 / fps + 2e-6).all()


@given(moment=st.floats(0, 1), start=st.floats(0, 5), length=st.floats(0.05, 20))
def test_clips_share_their_center_and_stay_inside(moment: float, start: float, length: float) -> None:
    slow, fast = compute_clip_times(moment, start, start + length, [SLOW, FAST])
    for times in (slow, fast):
        assert start <= times[0] and times[-1] < start + length and (np.diff(times) >= 0).all()
    if length >= 1.0:
        assert slow.mean() == pytest.approx(fast.mean())
        assert np.diff(slow) == pytest.approx(1 / 8)
        assert np.diff(fast) == pytest.approx(1 / 16)
        assert slow[0] >= start + 1 / 16 - 1e-9
        assert slow[-1] <= start + length - 1 / 16 + 1e-9


@given(first=st.floats(0, 1), second=st.floats(0, 1), length=st.floats(1, 20))
def test_own_moments_place_each_clip_for_itself(first: float, second: float, length: float) -> None:
    slow, fast = compute_clip_times((first, second), 0.0, length, [SLOW, FAST])
    assert slow == pytest.approx(compute_clip_times(first, 0.0, length, [SLOW])[0])
    assert fast == pytest.approx(compute_clip_times(second, 0.0, length, [FAST])[0])
    assert fast[0] >= 1 / 32 - 1e-9 and fast[-1] <= length - 1 / 32 + 1e-9


def test_ends_of_the_moment() -> None:
    first, last = compute_clip_times(0.0, 0.0, 4.0, [SLOW])[0], compute_clip_times(1.0, 0.0, 4.0, [SLOW])[0]
    assert first[0] == pytest.approx(1 / 16)
    assert last[-1] == pytest.approx(4 - 1 / 16)


def test_a_short_video_repeats_its_ends() -> None:
    starts = compute_frame_starts(5, 25.0)
    indices = find_frames(compute_clip_times(0.7, 0.0, 0.2, [SLOW])[0], starts)
    assert indices.tolist() == sorted(indices)
    assert indices[0] == 0
    assert indices[-1] == 4


def test_variable_rate_shows_the_frame_on_screen() -> None:
    starts = np.array([0.0, 0.1, 0.5, 0.6])
    assert find_frames(np.array([0.0, 0.09, 0.1, 0.49, 0.55, 9.0]), starts).tolist() == [0, 0, 1, 1, 2, 3]


@given(frames=st.integers(1, 500), fps=st.sampled_from(RATES))
def test_a_frames_own_time_is_that_frame(frames: int, fps: float) -> None:
    starts = compute_frame_starts(frames, fps)
    assert np.array_equal(find_frames(starts, starts), np.arange(frames))
