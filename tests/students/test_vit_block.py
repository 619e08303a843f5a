from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import Block as TimmsBlock
from timm.models.vision_transformer import LayerNorm

from pipeline.students.vit_block import Block


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_a_block_has_the_names_and_the_numbers_of_timms(drop_path: float) -> None:
    """Also of its random numbers: the first weights, and what a training step drops."""
    torch.manual_seed(0)
    ours = Block(24, 2, drop_path)
    torch.manual_seed(0)
    timms = TimmsBlock(24, 2, qkv_bias=True, drop_path=drop_path, norm_layer=LayerNorm)
    weights = timms.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    torch.manual_seed(1)
    got = [torch.randn(16, 5, 24, requires_grad=True) for _ in range(2)]
    got[1].data.copy_(got[0])
    results = []
    for block, tokens in zip((ours, timms), got, strict=True):
        torch.manual_seed(2)
        seen = block.train()(tokens)
        seen.square().sum().backward()
        results.append([seen, tokens.grad, block.eval()(tokens), *(parameter.grad for parameter in block.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert (drop_path > 0) == bool((results[0][0] != results[0][2]).any())
