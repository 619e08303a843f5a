"""A step in several parts is the step in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.loop import divide_step
from pipeline.training.step import split_batch, take_step
from tests.methods.traces import batch_of, small_config
from tests.training.few_steps import HERE, state_of, steps, weights


def test_accumulated_parts_equal_the_whole() -> None:
    """Without BatchNorm and contrast nothing depends on which clips go through together."""
    for method in ("supervised", "cmpl"):
        whole, one = steps(small_config(method={"name": method}, train={"warmup_steps": 0}))
        parted, other = steps(small_config(method={"name": method}, train={"warmup_steps": 0, "accumulation": 4}))
        assert torch.allclose(weights(whole), weights(parted), atol=1e-6)
        for mine, its in zip(one, other, strict=True):
            assert mine.keys() == its.keys()
            assert all(
                float(its[name]) == pytest.approx(float(mine[name]), rel=1e-3, abs=1e-6)
                for name in mine
                if mine[name].ndim == 0
            )


def test_parts_hold_every_row_once() -> None:
    batch = batch_of(0)
    parts = list(split_batch(batch, [3, 1]))
    assert [len(part.rows) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.rows for part in parts]), batch.rows)
    assert torch.equal(torch.cat([part.auxiliary for part in parts]), batch.auxiliary)


def test_parts_of_different_sizes_equal_the_whole() -> None:
    """Those of a worker that took over rows of another."""
    config = small_config(method={"name": "supervised"}, train={"warmup_steps": 0})
    whole, (one,) = steps(config, 1)
    parted = state_of(config)
    other = take_step(parted.method, parted, batch_of(0), config, replace(HERE, part_rows=[[3], [1]]))
    assert torch.allclose(weights(whole), weights(parted), atol=1e-6)
    assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=1e-4)


def test_parts_must_fit_the_workers() -> None:
    class Rows:
        rows_per_step = 6

    plan: Any = Rows()

    def rows(world: int, accumulation: int = 1, workers: int = 2) -> list[list[int]]:
        config = small_config(train={"accumulation": accumulation}, scale={"workers": workers})
        return divide_step(plan, config, world)

    assert rows(2, accumulation=3) == [[1, 1]] * 3
    assert rows(4, workers=4) == [[2, 2, 1, 1]]
    with pytest.raises(UserError, match=r"train\.accumulation=2 must divide the rows of each worker"):
        rows(2, accumulation=2)
    # fewer workers than configured: as many rows at a time as before, and never a worker without any
    assert rows(1, accumulation=3) == [[1]] * 6
    assert rows(2, accumulation=2, workers=3) == [[1, 1]] * 3
    plan.rows_per_step = 8
    assert rows(3, accumulation=2, workers=4) == [[2, 2, 1], [1, 1, 1]]
