from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.methods.losses import alignment, contrast_loss, pseudo_label_loss, pseudo_labels, supervised_loss


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def test_supervised_loss_is_the_mean_negative_log_likelihood() -> None:
    logits, labels = _draw(5, 3), torch.tensor([0, 2, 1, 1, 0])
    wanted = -sum(math.log(_softmax(row)[label]) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)) / 5
    assert float(supervised_loss(logits, labels)) == pytest.approx(wanted, rel=1e-6)


def test_pseudo_labels_keep_what_reaches_the_threshold() -> None:
    # confidences 0.8, 0.9, 0.52
    logits = torch.tensor([[0.0, math.log(4)], [math.log(9), 0.0], [0.0, 0.1]], requires_grad=True)
    labels, keep = pseudo_labels(logits, 0.79)
    assert labels.tolist() == [1, 0, 1]
    assert keep.tolist() == [True, True, False]
    assert pseudo_labels(logits, 0.85)[1].tolist() == [False, True, False]
    assert pseudo_labels(logits, 0.0)[1].all()
    assert not labels.requires_grad and not keep.requires_grad


def test_pseudo_label_loss_divides_by_all_clips() -> None:
    logits, labels, keep = _draw(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])
    kept = [-math.log(_softmax(logits[i].tolist())[int(labels[i])]) for i in (0, 2)]
    assert float(pseudo_label_loss(logits, labels, keep)) == pytest.approx(sum(kept) / 4, rel=1e-6)


def test_pseudo_label_loss_of_none_kept_is_zero_with_a_zero_gradient() -> None:
    logits = _draw(4, 3).requires_grad_()
    loss = pseudo_label_loss(logits, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def _slow_contrast(primary: torch.Tensor, auxiliary: torch.Tensor, temperature: float) -> float:
    """NT-Xent written out: for each of the 2U anchors, its partner against all other 2U - 1 features."""
    features, videos = [*primary.tolist(), *auxiliary.tolist()], len(primary)
    total = 0.0
    for anchor in range(2 * videos):
        partner = (anchor + videos) % (2 * videos)
        others = [index for index in range(2 * videos) if index != anchor]
        weights = {index: math.exp(_cosine(features[anchor], features[index]) / temperature) for index in others}
        total -= math.log(weights[partner] / sum(weights.values()))
    return total / (2 * videos)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("videos", [1, 2, 7])
def test_contrast_loss_equals_the_double_loop(videos: int, temperature: float) -> None:
    primary, auxiliary = _draw(videos, 4), _draw(videos, 4, seed=1)
    wanted = _slow_contrast(primary, auxiliary, temperature)
    assert float(contrast_loss(primary, auxiliary, temperature)) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_contrast_loss_is_symmetric_and_sees_directions_only() -> None:
    primary, auxiliary = _draw(5, 4), _draw(5, 4, seed=1)
    loss = contrast_loss(primary, auxiliary, 0.5)
    assert torch.allclose(loss, contrast_loss(auxiliary, primary, 0.5))
    assert torch.allclose(loss, contrast_loss(3 * primary, auxiliary / 7, 0.5))


def test_contrast_loss_is_least_where_students_agree_and_videos_differ() -> None:
    apart = torch.eye(4)
    assert contrast_loss(apart, apart, 0.5) < contrast_loss(apart, apart.roll(1, 0), 0.5)
    assert contrast_loss(apart, apart, 0.5) < contrast_loss(torch.ones(4, 4), torch.ones(4, 4), 0.5)


def test_contrast_gradient_reaches_both_students() -> None:
    primary, auxiliary = _draw(3, 4).requires_grad_(), _draw(3, 4, seed=1).requires_grad_()
    contrast_loss(primary, auxiliary, 0.5).backward()
    assert primary.grad is not None and bool(primary.grad.any(dim=1).all())
    assert auxiliary.grad is not None and bool(auxiliary.grad.any(dim=1).all())


def test_alignment_is_the_mean_cosine_of_same_and_of_different_videos() -> None:
    primary, auxiliary = _draw(3, 4), _draw(3, 4, seed=1)
    cosines = [[_cosine(one, other) for other in auxiliary.tolist()] for one in primary.tolist()]
    same, different = alignment(primary, auxiliary)
    assert float(same) == pytest.approx(sum(cosines[i][i] for i in range(3)) / 3, rel=1e-5)
    assert float(different) == pytest.approx(sum(cosines[i][j] for i in range(3) for j in range(3) if i != j) / 6, rel=1e-5)
    assert not same.requires_grad


def _two_workers(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    primary, auxiliary = _draw(6, 4).requires_grad_(), _draw(6, 4, seed=1).requires_grad_()
    mine = slice(3 * rank, 3 * rank + 3)
    loss = contrast_loss(primary[mine], auxiliary[mine], 0.5)
    loss.backward()
    torch.save((loss.detach(), primary.grad, auxiliary.grad), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_have_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    """Mean over workers, as DDP takes it, of loss and gradients == one worker with all videos."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_two_workers, args=(rank, str(tmp_path / "meeting"), str(tmp_path))) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    primary, auxiliary = _draw(6, 4).requires_grad_(), _draw(6, 4, seed=1).requires_grad_()
    loss = contrast_loss(primary, auxiliary, 0.5)
    loss.backward()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    means = [(one + other) / 2 for one, other in zip(*parts, strict=True)]
    for mean, wanted in zip(means, (loss, primary.grad, auxiliary.grad), strict=True):
        assert wanted is not None
        assert torch.allclose(mean, wanted.detach(), rtol=1e-5, atol=1e-7)
