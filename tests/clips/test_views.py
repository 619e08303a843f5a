from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.views import (
    derive_view_seeds,
    make_center_views,
    make_strong_views,
    make_weak_views,
    split_clips,
)
from pipeline.config import ViewsSection

ViewFunction = Callable[[torch.Tensor, list[int], ViewsSection, int], torch.Tensor]
BOTH = pytest.mark.parametrize("make", [make_weak_views, make_strong_views])


def random_clips(videos: int = 6, frames: int = 4, size: int = 20) -> torch.Tensor:
    """Smooth random pictures that change from frame to frame."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(videos * frames, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (smooth * 255).byte().permute(0, 2, 3, 1).unflatten(0, (videos, frames)).contiguous()


def make_section(**strong: Any) -> ViewsSection:
    return ViewsSection.model_validate({"strong": strong})


def some_seeds(number: int = 6, view: str = "primary/weak") -> list[int]:
    return derive_view_seeds(0, range(number), [1], view)


def test_seeds_of_all_rows_slots_views_and_runs_differ() -> None:
    views = ("primary/weak", "primary/strong", "auxiliary/weak", "auxiliary/strong")
    seeds = [seed for run in (0, 1) for view in views for seed in derive_view_seeds(run, range(50), range(6), view)]
    assert len(set(seeds)) == len(seeds) == 2 * 4 * 50 * 6
    assert derive_view_seeds(0, [7, 9], [1, 2], "primary/weak")[3] == derive_view_seeds(0, [9], [2], "primary/weak")[0]


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_view_seeds(5, [7], [2], "primary/weak") == [5160404388321672254]


@BOTH
def test_views_have_the_students_shape(make: ViewFunction) -> None:
    views = make(random_clips(), some_seeds(), ViewsSection(), 16)
    assert views.shape == (6, 3, 4, 16, 16)
    assert views.dtype == torch.float32
    assert views.is_contiguous()
    assert torch.isfinite(views).all()


@BOTH
def test_a_view_is_the_same_alone_and_in_a_batch(make: ViewFunction) -> None:
    clips, seeds = random_clips(), some_seeds()
    together = make(clips, seeds, make_section(ops=4), 16)
    for number in range(len(clips)):
        alone = make(clips[number : number + 1], seeds[number : number + 1], make_section(ops=4), 16)
        assert torch.equal(alone[0], together[number])


@BOTH
def test_a_view_of_an_odd_size_is_the_same_alone_and_in_a_large_batch(make: ViewFunction) -> None:
    """Vector instructions end a row elsewhere in a batch than in a clip alone, and large sums are shared by threads."""
    clips, seeds = random_clips(40, frames=3, size=23), some_seeds(40)
    together = make(clips, seeds, make_section(ops=4, magnitude=1.0), 17)
    for number in range(0, 40, 3):
        alone = make(clips[number : number + 1], seeds[number : number + 1], make_section(ops=4, magnitude=1.0), 17)
        assert torch.equal(alone[0], together[number])


@BOTH
@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_views_do_not_depend_on_how_many_clips_the_cache_holds(
    make: ViewFunction, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, seeds, section = random_clips(9), some_seeds(9), make_section(ops=4, time={"reverse": 0.5})
    together = make(clips, seeds, section, 16)
    monkeypatch.setattr("pipeline.clips.views.CACHE_BYTES", at_once * clips[0].numel() * 4)
    assert split_clips(9, clips[0].numel(), clips.device)[0] == slice(0, at_once)
    assert torch.equal(make(clips, seeds, section, 16), together)


@BOTH
def test_other_seeds_give_other_views(make: ViewFunction) -> None:
    clips = random_clips(1).expand(6, -1, -1, -1, -1)
    views = make(clips, some_seeds(), ViewsSection(), 16)
    assert all(not torch.equal(one, other) for one, other in pairwise(views))


@BOTH
def test_clips_are_left_as_they_were(make: ViewFunction) -> None:
    clips = random_clips()
    before = clips.clone()
    make(clips, some_seeds(), ViewsSection(), 16)
    assert torch.equal(clips, before)


@BOTH
def test_identical_frames_stay_identical(make: ViewFunction) -> None:
    clips = random_clips(40)[:, :1].expand(-1, 4, -1, -1, -1)
    views = make(clips, some_seeds(40), make_section(ops=4, magnitude=1.0), 16)
    assert torch.equal(views, views[:, :, :1].expand_as(views))


def _ramp(frames: int = 2, size: int = 32) -> torch.Tensor:
    """Brightness grows from left to right."""
    ramp = torch.arange(size) * 255 // (size - 1)
    return ramp.byte()[None, None, None, :, None].expand(1, frames, size, size, 3).contiguous()


@BOTH
@pytest.mark.parametrize(("flip", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_flip_is_a_probability(make: ViewFunction, flip: float, share: float) -> None:
    section = ViewsSection.model_validate({"weak": {"flip": flip}, "strong": {"ops": 0, "cutout": 0.0}})
    views = make(_ramp().expand(200, -1, -1, -1, -1), some_seeds(200), section, 8)
    flipped = (views[..., -1] < views[..., 0]).flatten(1).all(dim=1).float().mean()
    assert abs(float(flipped) - share) <= (0.1 if share == 0.5 else 0.0)


def test_strong_geometry_leaves_the_direction_alone() -> None:
    section = ViewsSection.model_validate({"weak": {"flip": 0.0}, "strong": {"ops": 2, "magnitude": 1.0, "cutout": 0.0}})
    centers = make_strong_views(_ramp().expand(100, -1, -1, -1, -1), some_seeds(100), section, 9)[:, 0, 0, 4]
    inside = centers.abs() > 1e-6  # what lies outside the window takes the mean
    rising = torch.stack([row[keep][-1] > row[keep][0] for row, keep in zip(centers, inside, strict=True)])
    assert rising.float().mean() > 0.85  # solarize turns some round


def test_crops_have_the_scales_asked_for() -> None:
    """On a ramp, the width of a view is the difference of its sides' brightness."""
    section = ViewsSection.model_validate({"weak": {"min_scale": 0.5, "flip": 0.0}})
    views = make_weak_views(_ramp(1, 64).expand(300, -1, -1, -1, -1), some_seeds(300), section, 16) * STD + MEAN
    scales = (views[:, 0, 0, 8, -1] - views[:, 0, 0, 8, 0]).numpy() * 63 / 64 * 16 / 15
    assert 0.49 < scales.min() < 0.53
    assert 0.97 < scales.max() < 1.01
    assert abs(scales.mean() - 0.75) < 0.03


def test_without_operations_and_cutout_strong_views_are_weak_views() -> None:
    section = make_section(ops=0, cutout=0.0)
    strong, weak = (make(random_clips(), some_seeds(), section, 16) for make in (make_strong_views, make_weak_views))
    assert torch.equal(strong, weak)


def test_cutout_erases_one_square_in_all_frames() -> None:
    clips = torch.full((50, 3, 20, 20, 3), 255, dtype=torch.uint8)
    views = make_strong_views(clips, some_seeds(50), make_section(ops=0, cutout=0.5), 20)
    erased = views == 0
    assert torch.equal(erased, erased[:, :1, :1].expand_as(erased))
    areas = [int(mask.any(0).sum() * mask.any(1).sum()) for mask in erased[:, 0, 0]]
    assert areas == erased[:, 0, 0].sum(dim=(1, 2)).tolist()
    assert 30 < max(areas) <= 100


def test_center_views_resize_and_normalize() -> None:
    clips = random_clips(2, size=16)
    views = make_center_views(clips, 16) * STD + MEAN
    assert torch.allclose(views, clips.permute(0, 4, 1, 2, 3) / 255, atol=1e-6)
    halved = make_center_views(clips, 8) * STD + MEAN
    pooled = torch.nn.functional.avg_pool2d((clips / 255).permute(0, 1, 4, 2, 3).flatten(0, 2), 2)
    assert torch.allclose(halved.transpose(1, 2).flatten(0, 2), pooled, atol=1e-6)


def test_center_views_take_the_center_of_the_longer_side() -> None:
    clips = random_clips(1, size=16)
    wide = torch.cat([torch.zeros_like(clips)[:, :, :, :4], clips, torch.zeros_like(clips)[:, :, :, :4]], dim=3)
    assert torch.allclose(make_center_views(wide, 16), make_center_views(clips, 16), atol=1e-5)


def test_views_do_not_touch_the_global_generators() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    make_strong_views(random_clips(), some_seeds(), ViewsSection(), 16)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])


@BOTH
def test_aspect_makes_crops_oblong_within_the_window(make: ViewFunction) -> None:
    """On ramps along x and y, the spans of a view are the sides of its crop."""
    size = 64
    ramp = (torch.arange(size) * 255 // (size - 1)).byte()
    across = ramp[None, :].expand(size, size)
    clips = torch.stack([across, across.T, across], dim=-1)[None, None].expand(100, 1, -1, -1, -1)
    weak = {"min_scale": 0.5, "flip": 0.0, "max_aspect": 2.0}
    section = ViewsSection.model_validate({"weak": weak, "strong": {"ops": 0, "cutout": 0.0}})
    views = make(clips, some_seeds(100), section, 16) * STD + MEAN
    ratios = (views[:, 0, 0, 8, -1] - views[:, 0, 0, 8, 0]) / (views[:, 1, 0, -1, 8] - views[:, 1, 0, 0, 8])
    assert 0.48 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.1
    assert abs(float(ratios.log().mean())) < 0.12
