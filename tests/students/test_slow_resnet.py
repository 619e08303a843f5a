from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import SlowResNetSection
from pipeline.students.slow_resnet import FramePool, SlowResNet


def _parameters(student: nn.Module) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


def _student(**section: object) -> SlowResNet:
    torch.manual_seed(0)
    return SlowResNet(SlowResNetSection.model_validate(section), 5)


def test_the_papers_primary_has_the_papers_size() -> None:
    with torch.device("meta"):
        student = SlowResNet(SlowResNetSection(), 101)
    assert round(_parameters(student) / 1e6, 2) == 31.84
    assert round((_parameters(student) - _parameters(student.head)) / 1e6, 3) == 31.634


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("depth", [10, 14, 18, 26])
def test_shapes(depth: int, norm: str) -> None:
    student = _student(depth=depth, width=8, norm=norm)
    logits, features = student(torch.randn(2, 3, 4, 32, 32))
    assert logits.shape == (2, 5)
    assert features.shape == (2, student.num_features) == (2, 64 * (4 if depth in (14, 26) else 1))
    assert torch.allclose(logits, student.head(features))


@pytest.mark.parametrize(("depth", "layers"), [(10, 9), (14, 13), (18, 17), (26, 25), (34, 33), (50, 49), (101, 100)])
def test_depth_counts_the_layers(depth: int, layers: int) -> None:
    """Convolutions without shortcuts, and the head makes one more."""
    with torch.device("meta"):
        student = SlowResNet(SlowResNetSection(depth=depth), 5)
    names = [name for name, module in student.named_modules() if isinstance(module, nn.Conv3d) and "shortcut" not in name]
    assert len(names) == layers


def test_time_is_never_strided_and_mixed_in_res4_and_res5_only() -> None:
    student = _student(depth=26, width=8)
    blocks_in = {2: (0, 2), 3: (2, 4), 4: (4, 6), 5: (6, 8)}
    for stage, (first, last) in blocks_in.items():
        convolutions = [m for block in student.blocks[first:last] for m in block.modules() if isinstance(m, nn.Conv3d)]
        assert max(convolution.kernel_size[0] for convolution in convolutions) == (3 if stage >= 4 else 1)
        assert all(convolution.stride[0] == 1 for convolution in convolutions)
    assert student.blocks(torch.randn(1, 8, 6, 8, 8)).shape[2] == 6


def test_order_of_frames_matters() -> None:
    student = _student(depth=10, width=8).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    assert not torch.allclose(student(clips)[0], student(clips.flip(2))[0], atol=1e-4)


def test_group_norm_does_not_mix_clips() -> None:
    student = _student(depth=10, width=8, norm="group")
    clips = torch.randn(3, 3, 2, 32, 32)
    assert torch.allclose(student(clips)[0][:1], student(clips[:1])[0], atol=1e-5)


def test_weights_follow_torchs_seed() -> None:
    assert torch.equal(_student(depth=10, width=8).stem[0].weight, _student(depth=10, width=8).stem[0].weight)


class Operators(TorchDispatchMode):
    """Names of the operators that run, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("sides", [(8, 8), (7, 9)])
def test_pooling_frame_by_frame_is_that_of_three_dimensions(layout: torch.memory_format, sides: tuple[int, int]) -> None:
    """The same values, gradients and memory format, without a copy, by operators that are fast and deterministic on a GPU."""
    torch.manual_seed(0)
    reference = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    maps = torch.randn(2, 6, 4, *sides).round(decimals=1).contiguous(memory_format=layout)  # rounded: some are equal
    found = []
    for pool in (FramePool(), reference):
        inputs = maps.clone(memory_format=torch.preserve_format).requires_grad_()
        with Operators() as operators:
            outputs = pool(inputs)
            loss = outputs.square().sum()
            loss.backward()
        assert {name for name in operators.names if "pool" in name or name in ("clone", "copy_")} == (
            {"max_pool3d_with_indices", "max_pool3d_with_indices_backward"} if pool is reference
            else {"max_pool2d_with_indices", "max_pool2d_with_indices_backward"}
        )  # fmt: skip
        found.append((outputs, inputs.grad))
    (one, its_gradient), (other, other_gradient) = found
    assert torch.equal(one, other) and torch.equal(its_gradient, other_gradient)
    assert one.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_no_step_of_the_network_pools_in_three_dimensions(layout: torch.memory_format) -> None:
    student = _student(depth=10, width=8).to(memory_format=layout)
    with Operators() as operators:
        student(torch.randn(2, 3, 4, 16, 16).contiguous(memory_format=layout))[0].sum().backward()
    assert {name for name in operators.names if "pool" in name} == {
        "max_pool2d_with_indices", "max_pool2d_with_indices_backward"
    }  # fmt: skip
