"""What must hold for each student alike, whatever its architecture."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import ClipSection, PrimarySection
from pipeline.students import Student, build_student
from pipeline.students.timesformer import DividedBlock

SMALL: dict[str, dict[str, Any]] = {
    "slow-18": {"arch": "slow_resnet", "depth": 18, "width": 8},
    "slow-50": {"arch": "slow_resnet", "depth": 50, "width": 8, "norm": "group"},
    "divided": {"arch": "timesformer", "width": 24, "depth": 2, "heads": 2, "patch": 8},
    "joint": {"arch": "timesformer", "width": 24, "depth": 2, "heads": 2, "patch": 8, "attention": "joint"},
    "space": {"arch": "timesformer", "width": 24, "depth": 2, "heads": 2, "patch": 8, "attention": "space"},
    "convolutional stem": {
        "arch": "timesformer",
        "width": 24,
        "depth": 2,
        "heads": 2,
        "patch": 8,
        "tubelet": 4,
        "stem": "convolutions",
    },
    "plain": {"arch": "plain_conv3d", "width": 8},
    "r3d_18": {"arch": "r3d_18"},
    "r2plus1d_18": {"arch": "r2plus1d_18"},
}
EACH = pytest.mark.parametrize("name", SMALL)
MOMENTS = {"convolutional stem": 1, "plain": 1, "r3d_18": 1, "r2plus1d_18": 1}


def student(name: str) -> Student:
    """A copy, because drawing the weights of a network of 33 million takes longer."""
    return copy.deepcopy(build_once(name))


@cache
def build_once(name: str) -> Student:
    torch.manual_seed(0)
    network = PrimarySection.model_validate({"network": SMALL[name]}).network
    built = build_student(network, ClipSection(frames=4, fps=8, size=32), 5)
    for block in built.modules():
        if isinstance(block, DividedBlock):  # starts at 0, where what lies before it gets no gradient yet
            nn.init.normal_(block.temporal_fc.weight, std=0.1)
    return built


@pytest.mark.parametrize("layers", [2, 3])
def test_a_plain_network_has_the_layers_that_are_asked_for(layers: int) -> None:
    section = PrimarySection.model_validate({"network": {"arch": "plain_conv3d", "width": 8, "layers": layers}})
    built = build_student(section.network, ClipSection(frames=4, fps=8, size=32), 5)
    assert [module.out_channels for module in built.modules() if isinstance(module, nn.Conv3d)] == [8, 16, 32][:layers]


def clips(number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("network", "millions", "without_head"),
    [
        ({"arch": "slow_resnet", "depth": 18}, None, 20.024),  # 11.177 of the 2-D one + 2/3 of 8 temporal kernels
        ({"arch": "slow_resnet", "depth": 34}, None, 39.569),  # 21.285 + 18.284
        ({"arch": "slow_resnet", "depth": 50}, 31.84, 31.634),
        ({"arch": "slow_resnet", "depth": 101}, None, 59.540),
        ({"arch": "timesformer", "width": 192, "heads": 3}, None, 7.754),
        ({"arch": "timesformer"}, 30.59, 30.55),
        ({"arch": "timesformer", "width": 768, "heads": 12}, None, 121.259),
        ({"arch": "r3d_18"}, None, 33.166),
        ({"arch": "r2plus1d_18"}, None, 31.300),
        ({"arch": "plain_conv3d"}, None, 0.656),  # 27 * (3 * 24 + 24 * 48 + 48 * 96 + 96 * 192) and norms
    ],
)
def test_sizes(network: dict[str, Any], millions: float | None, without_head: float) -> None:
    """At 101 classes, 8 frames of 224 pixels."""
    with torch.device("meta"):
        built = build_student(PrimarySection.model_validate({"network": network}).network, ClipSection(), 101)
    total = sum(parameter.numel() for parameter in built.parameters())
    head = sum(parameter.numel() for parameter in built.head.parameters())
    if millions is not None:
        assert round(total / 1e6, 2) == millions
    assert (total - head) / 1e6 == pytest.approx(without_head, abs=0.01)


@EACH
def test_shapes_and_moments(name: str) -> None:
    net = student(name).eval()
    logits, features = net(clips())
    assert logits.shape == (2, 5)
    assert features.shape == (2, net.num_features)
    net.per_frame = True
    again, moments = net(clips())
    assert torch.equal(again, logits)
    assert moments.shape == (2, MOMENTS.get(name, 4), net.num_features)


@EACH
def test_gradients_reach_every_parameter(name: str) -> None:
    net = student(name)
    net(clips(4))[0].square().sum().backward()
    assert [key for key, value in net.named_parameters() if value.grad is None or not value.grad.any()] == []


@EACH
def test_gradients_reach_every_parameter_but_the_head_from_features_of_moments(name: str) -> None:
    net = student(name)
    net.per_frame = True
    (net(clips(4))[1] * torch.randn(net.num_features)).square().sum().backward()
    missing = {key for key, value in net.named_parameters() if value.grad is None or not value.grad.any()}
    assert {key for key in missing if not key.startswith("head.")} <= ({"cls_token"} if name == "space" else set())


@EACH
@torch.no_grad()
def test_channels_last_changes_nothing_but_rounding(name: str) -> None:
    net = student(name).eval()
    plain = net(clips())[0]
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    assert torch.allclose(net(clips().contiguous(memory_format=torch.channels_last_3d))[0], plain, rtol=1e-3, atol=1e-4)


@EACH
@torch.no_grad()
def test_bf16_agrees_with_fp32(name: str) -> None:
    """bf16 has 8 bits of mantissa: 0.4 % a rounding."""
    net = student(name).eval()
    nn.init.normal_(net.head.weight, std=net.num_features**-0.5)
    plain = net(clips())[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(clips())[0]
    assert logits.dtype == torch.bfloat16
    assert float((logits.float() - plain).norm() / plain.norm()) < 0.05


@EACH
@torch.no_grad()
def test_torch_export_gives_the_same_network(name: str) -> None:
    """With any number of clips, not that of the example."""
    net = student(name).eval()
    exported = torch.export.export(net, (clips(),), dynamic_shapes=({0: torch.export.Dim("clips")},)).module()
    for number in (2, 5):
        for one, other in zip(exported(clips(number)), net(clips(number)), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["slow-18", "divided", "joint", "space", "plain"])
def test_any_length_and_size(name: str) -> None:
    """Longer and larger than the student was made for: the logits depend on every frame and on every place of it."""
    clip = torch.randn(1, 3, 6, 48, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = student(name).eval()(clip)[0]
    assert logits.shape == (1, 5)
    logits.square().sum().backward()
    assert clip.grad is not None
    assert bool((clip.grad.abs().sum(dim=1).unfold(2, 8, 8).unfold(3, 8, 8).sum(dim=(4, 5)) > 0).all())
