"""The operations of strong views: each is torchvision's, for a clip alone as in a batch, and can be left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pipeline.clips.randaugment import APPEARANCE, GEOMETRIC, IDENTITY, OPERATIONS
from pipeline.clips.views import _draw_operations, check_views
from pipeline.config import StrongSection
from pipeline.errors import UserError
from tests.clips.test_views import make_section, random_clips


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
    first, second = random_clips(1, 2).permute(0, 1, 4, 2, 3)[0].float() / 255
    one = _change(name, torch.stack([first, second])[None], 0.7)[0]
    other = _change(name, torch.stack([second, first])[None], 0.7)[0]
    assert torch.allclose(one, other.flip(0), atol=1e-6)
    assert not torch.allclose(one[0], first, atol=1e-3)


@pytest.mark.parametrize("name", ["contrast", "autocontrast", "equalize"])
def test_operations_that_measure_keep_a_darker_frame_darker(name: str) -> None:
    """Measured frame by frame, a fade would disappear: a frame and its dark copy would be stretched to the same."""
    bright = random_clips(1, 1)[0].permute(0, 3, 1, 2).float() / 255
    changed = _change(name, torch.cat([bright, 0.4 * bright])[None], 0.7)[0]
    assert changed[1].mean() < 0.7 * changed[0].mean()


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
        check_views(make_section(without=["rotat"]))
    with pytest.raises(UserError, match="no operation is left"):
        check_views(make_section(appearance=False, geometric=False))
    check_views(make_section(appearance=False, geometric=False, ops=0))
