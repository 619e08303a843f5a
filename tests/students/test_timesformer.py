from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from torch import nn

from pipeline.config import ClipSection, TimeSformerSection
from pipeline.students import build_student
from pipeline.students.timesformer import DividedBlock, TimeSformer

CLIP = ClipSection(frames=4, fps=8, size=16)


def _student(clip: ClipSection = CLIP, **section: Any) -> TimeSformer:
    torch.manual_seed(0)
    wanted = TimeSformerSection.model_validate({"width": 16, "depth": 2, "heads": 2, "patch": 8, **section})
    return TimeSformer(wanted, clip, 5)


def _parameters(student: nn.Module) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


def test_the_papers_auxiliary_has_the_papers_size() -> None:
    torch.manual_seed(0)
    student = build_student(TimeSformerSection(), ClipSection(frames=8, fps=16, size=224), 101)
    assert round(_parameters(student) / 1e6, 2) == 30.59
    assert round((_parameters(student) - _parameters(student.head)) / 1e6, 2) == 30.55


@pytest.mark.parametrize("attention", ["divided", "joint", "space"])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_shapes(attention: str, tubelet: int) -> None:
    student = _student(attention=attention, tubelet=tubelet)
    logits, features = student(torch.randn(3, 3, 4, 16, 16))
    assert logits.shape == (3, 5)
    assert features.shape == (3, student.num_features) == (3, 16)
    assert torch.allclose(logits, student.head(features))


@pytest.mark.parametrize("attention", ["divided", "joint", "space"])
def test_gradients_reach_every_parameter(attention: str) -> None:
    student = _student(attention=attention, drop_path=0.1).eval()
    for block in student.modules():  # it starts at 0, where what lies before it gets no gradient yet
        if isinstance(block, DividedBlock):
            nn.init.normal_(block.temporal_fc.weight)
    student(torch.randn(2, 3, 4, 16, 16))[0].square().sum().backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_space_attention_does_not_see_the_order_of_frames_and_divided_does() -> None:
    clips = torch.randn(1, 3, 4, 16, 16)
    space, divided = _student(attention="space").eval(), _student(attention="divided").eval()
    assert torch.allclose(space(clips)[0], space(clips.flip(2))[0], atol=1e-6)
    assert not torch.allclose(divided(clips)[0], divided(clips.flip(2))[0], atol=1e-6)


def test_only_the_first_block_starts_with_a_temporal_branch() -> None:
    blocks = [block for block in _student(depth=3).blocks if isinstance(block, DividedBlock)]
    assert [bool(block.temporal_fc.weight.any()) for block in blocks] == [True, False, False]


def _slow_attention(attention: Attention, tokens_MD: torch.Tensor) -> torch.Tensor:
    """Attention of M tokens, head by head and token by token."""
    queries, keys, values = (part.unflatten(1, (attention.num_heads, -1)) for part in attention.qkv(tokens_MD).chunk(3, dim=1))
    seen = torch.zeros_like(values)
    for head in range(attention.num_heads):
        for token in range(len(tokens_MD)):
            weights = (keys[:, head] @ queries[token, head] * queries.shape[2] ** -0.5).softmax(dim=0)
            seen[token, head] = weights @ values[:, head]
    return attention.proj(seen.flatten(1))


@torch.no_grad()
def test_a_divided_block_equals_its_definition() -> None:
    """Places one by one through time, then frames one by one with the cls token, whose copies are averaged."""
    torch.manual_seed(1)
    block = DividedBlock(8, 2, drop_path=0.0).double()
    cls, patches = torch.randn(1, 1, 8).double(), torch.randn(1, 3, 4, 8).double()
    wanted = patches[0].clone()
    for place in range(4):
        wanted[:, place] += block.temporal_fc(_slow_attention(block.temporal_attention, block.temporal_norm(wanted[:, place])))
    copies, moved = [], wanted.clone()
    for frame in range(3):
        seen = _slow_attention(block.space.attn, block.space.norm1(torch.cat([cls[0], wanted[frame]])))
        copies.append(seen[0])
        moved[frame] += seen[1:]
    tokens = torch.cat([cls[0] + torch.stack(copies).mean(dim=0), moved.flatten(0, 1)])
    tokens = tokens + block.space.mlp(block.space.norm2(tokens))
    got_cls, got_patches = block(cls, patches)
    assert torch.allclose(got_cls[0], tokens[:1], atol=1e-12)
    assert torch.allclose(got_patches[0].flatten(0, 1), tokens[1:], atol=1e-12)


def test_embeddings_carry_the_names_that_weight_decay_spares() -> None:
    names = [name for name, parameter in _student().named_parameters() if parameter.ndim == 3]
    assert names == ["cls_token", "position_embedding", "time_embedding"]
