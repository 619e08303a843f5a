from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from pipeline.clips.modalities import (
    FULL_FLOW,
    check_modalities,
    compute_optical_flow,
    compute_temporal_gradient,
    derive_modality,
)
from pipeline.errors import UserError


def _moving(right: int, down: int, frames: int = 4, size: int = 64) -> torch.Tensor:
    """A smooth random picture that moves by whole pixels a frame, wrapping around."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 16, 16, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0]
    return torch.stack([picture.roll((down * t, right * t), (1, 2)) for t in range(frames)], dim=1)[None]


def test_temporal_gradient_is_the_difference_and_repeats_the_last() -> None:
    views = torch.randn(2, 3, 5, 8, 8)
    gradient = compute_temporal_gradient(views)
    assert gradient.shape == views.shape
    for t in range(4):
        assert torch.equal(gradient[:, :, t], views[:, :, t + 1] - views[:, :, t])
    assert torch.equal(gradient[:, :, 4], gradient[:, :, 3])


@pytest.mark.parametrize("modality", ["temporal_gradient", "optical_flow"])
def test_a_still_clip_and_a_single_frame_have_none(modality: Any) -> None:
    still = _moving(0, 0)
    assert derive_modality(still, modality).abs().max() < 1e-5
    assert not derive_modality(still[:, :, :1], modality).any()


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 2), (-2, 1)])
def test_optical_flow_is_the_motion(right: int, down: int) -> None:
    flow = compute_optical_flow(_moving(right, down))
    assert flow.shape == (1, 3, 4, 64, 64)
    pixels = flow[0, :, :, 16:48, 16:48].flatten(1).median(dim=1).values * FULL_FLOW * 64
    wanted = torch.tensor([right, down, (right**2 + down**2) ** 0.5])
    assert torch.allclose(pixels, wanted, atol=0.25)


def test_rgb_is_itself() -> None:
    views = torch.randn(1, 3, 2, 8, 8)
    assert derive_modality(views, "rgb") is views


def test_without_opencv_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_modalities(["rgb", "temporal_gradient", "optical_flow"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_modalities(["rgb", "temporal_gradient"])
    with pytest.raises(UserError, match=r"pip install 'actnetformer\[flow\]'"):
        check_modalities(["rgb", "optical_flow"])
