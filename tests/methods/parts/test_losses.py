from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.methods.parts.losses import (
    compute_alignment,
    compute_alignment_loss,
    compute_consistency_loss,
    compute_contrast_loss,
    compute_group_contrast_loss,
    compute_pseudo_label_loss,
    compute_supervised_loss,
)
from tests.two_processes import SHARED, run_two

pytestmark = SHARED


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def test_supervised_loss_is_the_mean_negative_log_likelihood() -> None:
    logits, labels = _draw(5, 3), torch.tensor([0, 2, 1, 1, 0])
    wanted = -sum(math.log(_softmax(row)[label]) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)) / 5
    assert float(compute_supervised_loss(logits, labels)) == pytest.approx(wanted, rel=1e-6)


def test_pseudo_label_loss_divides_by_all_clips() -> None:
    logits, labels, keep = _draw(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])
    kept = [-math.log(_softmax(logits[i].tolist())[int(labels[i])]) for i in (0, 2)]
    assert float(compute_pseudo_label_loss(logits, labels, keep)) == pytest.approx(sum(kept) / 4, rel=1e-6)


def test_pseudo_label_loss_of_none_kept_is_zero_with_a_zero_gradient() -> None:
    logits = _draw(4, 3).requires_grad_()
    loss = compute_pseudo_label_loss(logits, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def slow_contrast(
    primary: torch.Tensor, auxiliary: torch.Tensor, temperature: float, negatives: str = "both", moments: int = 1
) -> float:
    """NT-Xent written out: for each anchor, its partner against the features that count as negatives."""
    sides = {"primary": primary.tolist(), "auxiliary": auxiliary.tolist()}
    total, count = 0.0, len(primary)
    for side, other in (("primary", "auxiliary"), ("auxiliary", "primary")):
        for anchor in range(count):

            def weight(where: str, index: int, side: str = side, anchor: int = anchor) -> float:
                return math.exp(_cosine(sides[side][anchor], sides[where][index]) / temperature)

            strangers = [index for index in range(count) if index // moments != anchor // moments]
            repelling = sum(weight(other, index) for index in strangers)
            if negatives == "both":
                repelling += sum(weight(side, index) for index in strangers)
            total -= math.log(weight(other, anchor) / (weight(other, anchor) + repelling))
    return total / (2 * count)


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("moments", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("videos", [1, 2, 7])
def test_contrast_loss_equals_the_double_loop(videos: int, temperature: float, moments: int, negatives: Any) -> None:
    primary, auxiliary = _draw(videos * moments, 4), _draw(videos * moments, 4, seed=1)
    wanted = slow_contrast(primary, auxiliary, temperature, negatives, moments)
    found = compute_contrast_loss(primary, auxiliary, temperature, negatives, moments)
    assert float(found) == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_contrast_loss_is_symmetric_and_sees_directions_only() -> None:
    primary, auxiliary = _draw(5, 4), _draw(5, 4, seed=1)
    loss = compute_contrast_loss(primary, auxiliary, 0.5)
    assert torch.allclose(loss, compute_contrast_loss(auxiliary, primary, 0.5))
    assert torch.allclose(loss, compute_contrast_loss(3 * primary, auxiliary / 7, 0.5))


def test_contrast_loss_is_least_where_students_agree_and_videos_differ() -> None:
    apart = torch.eye(4)
    assert compute_contrast_loss(apart, apart, 0.5) < compute_contrast_loss(apart, apart.roll(1, 0), 0.5)
    assert compute_contrast_loss(apart, apart, 0.5) < compute_contrast_loss(torch.ones(4, 4), torch.ones(4, 4), 0.5)


def test_contrast_gradient_reaches_both_students() -> None:
    primary, auxiliary = _draw(3, 4).requires_grad_(), _draw(3, 4, seed=1).requires_grad_()
    compute_contrast_loss(primary, auxiliary, 0.5).backward()
    assert primary.grad is not None and bool(primary.grad.any(dim=1).all())
    assert auxiliary.grad is not None and bool(auxiliary.grad.any(dim=1).all())


def test_alignment_is_the_mean_cosine_of_same_and_of_different_videos() -> None:
    primary, auxiliary = _draw(3, 4), _draw(3, 4, seed=1)
    cosines = [[_cosine(one, other) for other in auxiliary.tolist()] for one in primary.tolist()]
    same, different = compute_alignment(primary, auxiliary)
    assert float(same) == pytest.approx(sum(cosines[i][i] for i in range(3)) / 3, rel=1e-5)
    assert float(different) == pytest.approx(sum(cosines[i][j] for i in range(3) for j in range(3) if i != j) / 6, rel=1e-5)
    assert not same.requires_grad


def test_other_moments_of_a_video_are_no_different_video() -> None:
    features = torch.eye(2).repeat_interleave(2, dim=0)
    same, different = compute_alignment(features, features, moments=2)
    assert (float(same), float(different)) == (1, 0)
    assert float(compute_alignment(features[:2], features[:2], moments=2)[1]) == 0


def _slow_groups(fast: list[list[float]], slow: list[list[float]], temperature: float) -> float:
    """TCL's group contrast written out over dictionaries of mean vectors."""
    views = []
    for view in (fast, slow):
        groups: dict[int, list[list[float]]] = {}
        for row in view:
            groups.setdefault(row.index(max(row)), []).append(row)
        views.append({k: [sum(column) / len(rows) for column in zip(*rows, strict=True)] for k, rows in groups.items()})
    shared = sorted(set(views[0]) & set(views[1]))
    total = 0.0
    for one, other in ((0, 1), (1, 0)):
        for k in shared:
            anchor, partner = views[one][k], views[other][k]
            everyone = [views[v][c] for v in (0, 1) for c in shared if not (v == one and c == k)]
            weights = sum(math.exp(_cosine(anchor, feature) / temperature) for feature in everyone)
            total -= math.log(math.exp(_cosine(anchor, partner) / temperature) / weights)
    return total / (2 * len(shared))


@pytest.mark.parametrize("seed", range(5))
def test_group_contrast_equals_the_one_over_dictionaries(seed: int) -> None:
    fast, slow = _draw(12, 4, seed=seed).softmax(1), _draw(12, 4, seed=seed + 50).softmax(1)
    wanted = _slow_groups(fast.tolist(), slow.tolist(), 0.5)
    assert float(compute_group_contrast_loss(fast, slow, 0.5)) == pytest.approx(wanted, rel=1e-5)


def test_one_group_has_nothing_to_differ_from() -> None:
    fast = torch.eye(4)[[1, 1]].requires_grad_()
    loss = compute_group_contrast_loss(fast, torch.eye(4)[[1, 2]], 0.5)
    loss.backward()
    assert float(loss.detach()) == 0
    assert fast.grad is not None and not fast.grad.any()


def test_consistency_is_the_squared_distance_or_the_divergence() -> None:
    logits, targets = _draw(3, 4), _draw(3, 4, seed=1).softmax(1)
    pairs = [(_softmax(row), target) for row, target in zip(logits.tolist(), targets.tolist(), strict=True)]
    squares = sum(sum((p - t) ** 2 for p, t in zip(*pair, strict=True)) for pair in pairs) / 3
    divergence = sum(sum(t * math.log(t / p) for p, t in zip(*pair, strict=True)) for pair in pairs) / 3
    assert float(compute_consistency_loss(logits, targets, "mse")) == pytest.approx(squares, rel=1e-5)
    assert float(compute_consistency_loss(logits, targets, "kl")) == pytest.approx(divergence, rel=1e-4)
    assert float(compute_consistency_loss(targets.log(), targets, "kl")) == pytest.approx(0, abs=1e-6)


def test_alignment_loss_moves_the_first_only() -> None:
    one, other = _draw(3, 4).requires_grad_(), _draw(3, 4, seed=1).requires_grad_()
    loss = compute_alignment_loss(one, other)
    loss.backward()
    wanted = sum(1 - _cosine(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)) / 3
    assert float(loss.detach()) == pytest.approx(wanted)
    assert one.grad is not None and one.grad.any()
    assert other.grad is None


def test_soft_labels_are_a_cross_entropy_with_probabilities() -> None:
    logits, targets = _draw(2, 3), _draw(2, 3, seed=1).softmax(1)
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    values = [-sum(t * math.log(p) for t, p in zip(target, _softmax(row), strict=True)) for row, target in rows]
    found = compute_pseudo_label_loss(logits, targets.float(), torch.tensor([1.0, 0.25]))
    assert float(found) == pytest.approx((values[0] + 0.25 * values[1]) / 2, rel=1e-5)


@torch.no_grad()
def test_autocast_does_not_round_what_is_compared() -> None:
    """A run in bfloat16 computes its losses in float32; only the students round."""
    one, other = _draw(12, 4).float(), _draw(12, 4, seed=1).float()
    functions = {**LOSSES, "alignment": lambda one, other: compute_alignment(one, other)[1]}
    plain = {name: function(one, other) for name, function in functions.items()}
    with torch.autocast("cpu", torch.bfloat16):
        cast = {name: function(one, other) for name, function in functions.items()}
    assert {name: float(value) for name, value in cast.items()} == {name: float(value) for name, value in plain.items()}


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "contrast": lambda one, other: compute_contrast_loss(one, other, 0.5),
    "cross": lambda one, other: compute_contrast_loss(one, other, 0.5, "cross"),
    "moments": lambda one, other: compute_contrast_loss(one, other, 0.5, moments=3),
    "groups": lambda one, other: compute_group_contrast_loss(one.softmax(1), other.softmax(1), 0.5),
}
"""What depends on all workers' features."""


def _two_workers(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for name, function in LOSSES.items():
        primary, auxiliary = _draw(12, 4).requires_grad_(), _draw(12, 4, seed=1).requires_grad_()
        mine = slice(6 * rank, 6 * rank + 6)
        loss = function(primary[mine], auxiliary[mine])
        loss.backward()
        torch.save((loss.detach(), primary.grad, auxiliary.grad), f"{results}/{name}-{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """Mean over workers, as DDP takes it, of loss and gradients == one worker with all videos."""
    run_two(_two_workers, tmp_path)
    for name, function in LOSSES.items():
        primary, auxiliary = _draw(12, 4).requires_grad_(), _draw(12, 4, seed=1).requires_grad_()
        loss = function(primary, auxiliary)
        loss.backward()
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        means = [(one + other) / 2 for one, other in zip(*parts, strict=True)]
        for mean, wanted in zip(means, (loss, primary.grad, auxiliary.grad), strict=True):
            assert wanted is not None
            assert torch.allclose(mean, wanted.detach(), rtol=1e-5, atol=1e-7), name
