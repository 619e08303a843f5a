"""Views that show the frames of a clip in another order or at another speed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.views import draw_frame_order
from pipeline.config import TimeSection, ViewsSection
from tests.clips.test_views import BOTH, ViewFunction, random_clips, some_seeds


def _counting(frames: int = 8) -> torch.Tensor:
    """[1, T, 16, 16, 3], every pixel the number of its frame times 20."""
    return (torch.arange(frames) * 20).byte()[None, :, None, None, None].expand(1, frames, 16, 16, 3).contiguous()


def _shown(make: ViewFunction, seed: int, **time: Any) -> list[int]:
    """Numbers of the frames that a view shows."""
    section = ViewsSection.model_validate({"weak": {"time": time}, "strong": {"time": time, "ops": 0, "cutout": 0.0}})
    views = make(_counting(), [seed], section, 16)
    return [round(float(value) * 255 / 20) for value in views[0, 0, :, 8, 8] * STD + MEAN]


@BOTH
def test_time_is_left_alone_by_default(make: ViewFunction) -> None:
    assert _shown(make, 1) == list(range(8))


@BOTH
def test_reverse_is_a_probability(make: ViewFunction) -> None:
    assert _shown(make, 1, reverse=1.0) == list(range(8))[::-1]
    shown = [_shown(make, seed, reverse=0.5) for seed in range(60)]
    assert {tuple(order) for order in shown} == {tuple(range(8)), tuple(range(7, -1, -1))}
    assert 15 < sum(order[0] == 7 for order in shown) < 45


@BOTH
def test_warp_keeps_some_frames_and_shows_the_nearest_kept_one(make: ViewFunction) -> None:
    kept: Counter[int] = Counter()
    for seed in range(60):
        order = _shown(make, seed, warp=[2, 4, 8])
        places = sorted(set(order))
        kept[len(places)] += 1
        assert all(abs(frame - moment) == min(abs(place - moment) for place in places) for moment, frame in enumerate(order))
        assert order == sorted(order)
        assert all(order[place] == place for place in places)
    assert set(kept) == {2, 4, 8}
    assert min(kept.values()) > 8


@BOTH
def test_slower_clips_stay_around_the_middle(make: ViewFunction) -> None:
    for seed in range(30):
        order = _shown(make, seed, slowest=0.25)
        assert order == sorted(order)
        assert all(one + other == 7 for one, other in zip(order, order[::-1], strict=True))
    assert len({tuple(_shown(make, seed, slowest=0.25)) for seed in range(30)}) > 3


@BOTH
def test_time_changes_nothing_else_of_a_view(make: ViewFunction) -> None:
    clips = random_clips()
    plain = make(clips, some_seeds(), ViewsSection(), 16)
    section = ViewsSection.model_validate({kind: {"time": {"reverse": 1.0}} for kind in ("weak", "strong")})
    backward = make(clips.flip(1), some_seeds(), section, 16)
    assert torch.equal(backward, plain)


def test_more_kept_frames_than_there_are_keep_all() -> None:
    order = draw_frame_order(np.random.default_rng(0), TimeSection(warp=(8,)), 4)
    assert order.tolist() == [0, 1, 2, 3]
