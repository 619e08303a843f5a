from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.randaugment import APPEARANCE, GEOMETRIC, IDENTITY, OPERATIONS
from pipeline.clips.views import (
    _draw_operations,
    check_views,
    derive_view_seeds,
    draw_frame_order,
    make_center_views,
    make_strong_views,
    make_weak_views,
    split_clips,
)
from pipeline.config import StrongSection, TimeSection, ViewsSection
from pipeline.errors import UserError

ViewFunction = Callable[[torch.Tensor, list[int], ViewsSection, int], torch.Tensor]
BOTH = pytest.mark.parametrize("make", [make_weak_views, make_strong_views])


def _clips(videos: int = 6, frames: int = 4, size: int = 20) -> torch.Tensor:
    """Smooth random pictures that change from frame to frame."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(videos * frames, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (smooth * 255).byte().permute(0, 2, 3, 1).unflatten(0, (videos, frames)).contiguous()


def _section(**strong: Any) -> ViewsSection:
    return ViewsSection.model_validate({"strong": strong})


def _seeds(number: int = 6, view: str = "primary/weak") -> list[int]:
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
    views = make(_clips(), _seeds(), ViewsSection(), 16)
    assert views.shape == (6, 3, 4, 16, 16)
    assert views.dtype == torch.float32
    assert views.is_contiguous()
    assert torch.isfinite(views).all()


@BOTH
def test_a_view_is_the_same_alone_and_in_a_batch(make: ViewFunction) -> None:
    clips, seeds = _clips(), _seeds()
    together = make(clips, seeds, _section(ops=4), 16)
    for number in range(len(clips)):
        alone = make(clips[number : number + 1], seeds[number : number + 1], _section(ops=4), 16)
        assert torch.equal(alone[0], together[number])


@BOTH
def test_a_view_of_an_odd_size_is_the_same_alone_and_in_a_large_batch(make: ViewFunction) -> None:
    """Vector instructions end a row elsewhere in a batch than in a clip alone, and large sums are shared by threads."""
    clips, seeds = _clips(40, frames=3, size=23), _seeds(40)
    together = make(clips, seeds, _section(ops=4, magnitude=1.0), 17)
    for number in range(0, 40, 3):
        alone = make(clips[number : number + 1], seeds[number : number + 1], _section(ops=4, magnitude=1.0), 17)
        assert torch.equal(alone[0], together[number])


@BOTH
@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_views_do_not_depend_on_how_many_clips_the_cache_holds(
    make: ViewFunction, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, seeds, section = _clips(9), _seeds(9), _section(ops=4, time={"reverse": 0.5})
    together = make(clips, seeds, section, 16)
    monkeypatch.setattr("pipeline.clips.views.CACHE_BYTES", at_once * clips[0].numel() * 4)
    assert split_clips(9, clips[0].numel(), clips.device)[0] == slice(0, at_once)
    assert torch.equal(make(clips, seeds, section, 16), together)


@BOTH
def test_other_seeds_give_other_views(make: ViewFunction) -> None:
    clips = _clips(1).expand(6, -1, -1, -1, -1)
    views = make(clips, _seeds(), ViewsSection(), 16)
    assert all(not torch.equal(one, other) for one, other in pairwise(views))


@BOTH
def test_clips_are_left_as_they_were(make: ViewFunction) -> None:
    clips = _clips()
    before = clips.clone()
    make(clips, _seeds(), ViewsSection(), 16)
    assert torch.equal(clips, before)


@BOTH
def test_identical_frames_stay_identical(make: ViewFunction) -> None:
    clips = _clips(40)[:, :1].expand(-1, 4, -1, -1, -1)
    views = make(clips, _seeds(40), _section(ops=4, magnitude=1.0), 16)
    assert torch.equal(views, views[:, :, :1].expand_as(views))


def _change(name: str, clips_NTCHW: torch.Tensor, *strengths: float) -> torch.Tensor:
    """An operation on clips in 0..1, which are left as they are, each by its own strength or all by one."""
    values = torch.tensor([APPEARANCE[name].value(strength) for strength in strengths]).view(-1, 1, 1, 1, 1)
    return APPEARANCE[name].change(clips_NTCHW.clone(), values.expand(len(clips_NTCHW), -1, -1, -1, -1))


def _difficult_clips() -> torch.Tensor:
    """[6, 3, 3, 19, 21] in 0..1, of odd sizes: noise, smooth, few levels, little contrast, dark, and of a single color."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(6, 3, 3, 19, 21, generator=generator)
    smooth = torch.linspace(0, 1, 21).expand(3, 3, 19, 21) * noise[1, :, :, :1, :1]
    few = (noise[2] * 8).floor() / 8
    return torch.stack([noise[0], smooth, few, 0.2 + 0.3 * noise[3], 0.01 * noise[4], torch.full_like(noise[5], 0.37)])


STRENGTHS = (-1.0, -0.7, -0.013, 0.0, 0.3, 0.9)


def _torchvision(name: str, clip_TCHW: torch.Tensor, strength: float) -> torch.Tensor:
    """torchvision's operation; those that measure an image are shown the clip as one tall image."""
    tall_CHW = clip_TCHW.transpose(0, 1).flatten(1, 2)
    factor = 1 + 0.9 * strength
    references: dict[str, Callable[[], torch.Tensor]] = {
        "brightness": lambda: reference.adjust_brightness(clip_TCHW, factor),
        "color": lambda: reference.adjust_saturation(clip_TCHW, factor),
        "sharpness": lambda: reference.adjust_sharpness(clip_TCHW, factor),
        "solarize": lambda: reference.solarize(clip_TCHW, 1 - abs(strength)),
        "posterize": lambda: reference.posterize(clip_TCHW, 8 - round(4 * abs(strength))),
        "contrast": lambda: reference.adjust_contrast(tall_CHW, factor),
        "autocontrast": lambda: reference.autocontrast(tall_CHW),
        "equalize": lambda: reference.equalize(tall_CHW),
    }
    changed = references[name]()
    return changed if changed.ndim == 4 else torch.unflatten(changed, 1, (len(clip_TCHW), -1)).transpose(0, 1)


@pytest.mark.parametrize("name", sorted(APPEARANCE))
def test_every_operation_is_torchvisions(name: str) -> None:
    clips = _difficult_clips()
    changed = _change(name, clips, *STRENGTHS)
    for clip, strength, ours in zip(clips, STRENGTHS, changed, strict=True):
        assert torch.allclose(ours, _torchvision(name, clip, strength), rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", sorted(APPEARANCE))
def test_an_operation_gives_a_clip_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    clips = _difficult_clips()
    together = _change(name, clips, *STRENGTHS)
    for clip, strength, changed in zip(clips, STRENGTHS, together, strict=True):
        assert torch.equal(_change(name, clip[None], strength)[0], changed)


@pytest.mark.parametrize("name", sorted(APPEARANCE))
def test_an_operation_does_the_same_to_a_color_in_whatever_frame(name: str) -> None:
    """A clip of two different frames, then their order exchanged: the result is exchanged too."""
    first, second = _clips(1, 2).permute(0, 1, 4, 2, 3)[0].float() / 255
    one = _change(name, torch.stack([first, second])[None], 0.7)[0]
    other = _change(name, torch.stack([second, first])[None], 0.7)[0]
    assert torch.allclose(one, other.flip(0), atol=1e-6)
    assert not torch.allclose(one[0], first, atol=1e-3)


@pytest.mark.parametrize("name", ["contrast", "autocontrast", "equalize"])
def test_operations_that_measure_keep_a_darker_frame_darker(name: str) -> None:
    """Measured frame by frame, a fade would disappear: a frame and its dark copy would be stretched to the same."""
    bright = _clips(1, 1)[0].permute(0, 3, 1, 2).float() / 255
    changed = _change(name, torch.cat([bright, 0.4 * bright])[None], 0.7)[0]
    assert changed[1].mean() < 0.7 * changed[0].mean()


def _ramp(frames: int = 2, size: int = 32) -> torch.Tensor:
    """Brightness grows from left to right."""
    ramp = torch.arange(size) * 255 // (size - 1)
    return ramp.byte()[None, None, None, :, None].expand(1, frames, size, size, 3).contiguous()


@BOTH
@pytest.mark.parametrize(("flip", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_flip_is_a_probability(make: ViewFunction, flip: float, share: float) -> None:
    section = ViewsSection.model_validate({"weak": {"flip": flip}, "strong": {"ops": 0, "cutout": 0.0}})
    views = make(_ramp().expand(200, -1, -1, -1, -1), _seeds(200), section, 8)
    flipped = (views[..., -1] < views[..., 0]).flatten(1).all(dim=1).float().mean()
    assert abs(float(flipped) - share) <= (0.1 if share == 0.5 else 0.0)


def test_strong_geometry_leaves_the_direction_alone() -> None:
    section = ViewsSection.model_validate({"weak": {"flip": 0.0}, "strong": {"ops": 2, "magnitude": 1.0, "cutout": 0.0}})
    centers = make_strong_views(_ramp().expand(100, -1, -1, -1, -1), _seeds(100), section, 9)[:, 0, 0, 4]
    inside = centers.abs() > 1e-6  # what lies outside the window takes the mean
    rising = torch.stack([row[keep][-1] > row[keep][0] for row, keep in zip(centers, inside, strict=True)])
    assert rising.float().mean() > 0.85  # solarize turns some round


def test_crops_have_the_scales_asked_for() -> None:
    """On a ramp, the width of a view is the difference of its sides' brightness."""
    section = ViewsSection.model_validate({"weak": {"min_scale": 0.5, "flip": 0.0}})
    views = make_weak_views(_ramp(1, 64).expand(300, -1, -1, -1, -1), _seeds(300), section, 16) * STD + MEAN
    scales = (views[:, 0, 0, 8, -1] - views[:, 0, 0, 8, 0]).numpy() * 63 / 64 * 16 / 15
    assert 0.49 < scales.min() < 0.53
    assert 0.97 < scales.max() < 1.01
    assert abs(scales.mean() - 0.75) < 0.03


def test_without_operations_and_cutout_strong_views_are_weak_views() -> None:
    section = _section(ops=0, cutout=0.0)
    assert torch.equal(make_strong_views(_clips(), _seeds(), section, 16), make_weak_views(_clips(), _seeds(), section, 16))


def test_cutout_erases_one_square_in_all_frames() -> None:
    clips = torch.full((50, 3, 20, 20, 3), 255, dtype=torch.uint8)
    views = make_strong_views(clips, _seeds(50), _section(ops=0, cutout=0.5), 20)
    erased = views == 0
    assert torch.equal(erased, erased[:, :1, :1].expand_as(erased))
    areas = [int(mask.any(0).sum() * mask.any(1).sum()) for mask in erased[:, 0, 0]]
    assert areas == erased[:, 0, 0].sum(dim=(1, 2)).tolist()
    assert 30 < max(areas) <= 100


def test_center_views_resize_and_normalize() -> None:
    clips = _clips(2, size=16)
    views = make_center_views(clips, 16) * STD + MEAN
    assert torch.allclose(views, clips.permute(0, 4, 1, 2, 3) / 255, atol=1e-6)
    halved = make_center_views(clips, 8) * STD + MEAN
    pooled = torch.nn.functional.avg_pool2d((clips / 255).permute(0, 1, 4, 2, 3).flatten(0, 2), 2)
    assert torch.allclose(halved.transpose(1, 2).flatten(0, 2), pooled, atol=1e-6)


def test_center_views_take_the_center_of_the_longer_side() -> None:
    clips = _clips(1, size=16)
    wide = torch.cat([torch.zeros_like(clips)[:, :, :, :4], clips, torch.zeros_like(clips)[:, :, :, :4]], dim=3)
    assert torch.allclose(make_center_views(wide, 16), make_center_views(clips, 16), atol=1e-5)


def test_views_do_not_touch_the_global_generators() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    make_strong_views(_clips(), _seeds(), ViewsSection(), 16)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])


# --------------------------------------------------------------------------------------------------------------- time


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
    clips = _clips()
    plain = make(clips, _seeds(), ViewsSection(), 16)
    section = ViewsSection.model_validate({kind: {"time": {"reverse": 1.0}} for kind in ("weak", "strong")})
    backward = make(clips.flip(1), _seeds(), section, 16)
    assert torch.equal(backward, plain)


def test_more_kept_frames_than_there_are_keep_all() -> None:
    order = draw_frame_order(np.random.default_rng(0), TimeSection(warp=(8,)), 4)
    assert order.tolist() == [0, 1, 2, 3]


@BOTH
def test_aspect_makes_crops_oblong_within_the_window(make: ViewFunction) -> None:
    """On ramps along x and y, the spans of a view are the sides of its crop."""
    size = 64
    ramp = (torch.arange(size) * 255 // (size - 1)).byte()
    across = ramp[None, :].expand(size, size)
    clips = torch.stack([across, across.T, across], dim=-1)[None, None].expand(100, 1, -1, -1, -1)
    weak = {"min_scale": 0.5, "flip": 0.0, "max_aspect": 2.0}
    section = ViewsSection.model_validate({"weak": weak, "strong": {"ops": 0, "cutout": 0.0}})
    views = make(clips, _seeds(100), section, 16) * STD + MEAN
    ratios = (views[:, 0, 0, 8, -1] - views[:, 0, 0, 8, 0]) / (views[:, 1, 0, -1, 8] - views[:, 1, 0, 0, 8])
    assert 0.48 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.1
    assert abs(float(ratios.log().mean())) < 0.12


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_can_be_left_out(name: str) -> None:
    section = StrongSection(ops=3, without=(name,))
    drawn = {used for seed in range(200) for used, _ in _draw_operations(np.random.default_rng(seed), section)}
    assert drawn == set(OPERATIONS) - {name}


def test_kinds_of_operations_can_be_left_out() -> None:
    for section, wanted in (
        (StrongSection(ops=3, appearance=False), set(GEOMETRIC)),
        (StrongSection(ops=3, geometric=False), {IDENTITY, *APPEARANCE}),
    ):
        drawn = {used for seed in range(200) for used, _ in _draw_operations(np.random.default_rng(seed), section)}
        assert drawn == wanted


def test_operations_that_do_not_exist_are_told() -> None:
    with pytest.raises(UserError, match="there is no rotat, only identity, brightness"):
        check_views(_section(without=["rotat"]))
    with pytest.raises(UserError, match="no operation is left"):
        check_views(_section(appearance=False, geometric=False))
    check_views(_section(appearance=False, geometric=False, ops=0))
