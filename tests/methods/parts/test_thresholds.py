"""Threshold policies against slow references written from the papers' equations, and their state between workers."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.config import LabelSection
from pipeline.methods.parts.thresholds import (
    LabelPolicy,
    align_probabilities,
    compute_flexmatch_share,
    compute_softmatch_weights,
)
from tests.two_processes import SHARED, run_two

pytestmark = SHARED

VIDEOS, CLASSES = 40, 4
POLICIES = ("fixed", "flexmatch", "freematch", "softmatch")


def policy(threshold: float = 0.6, **section: Any) -> LabelPolicy:
    return LabelPolicy(LabelSection.model_validate(section), threshold, CLASSES, VIDEOS, VIDEOS)


def step(number: int, clips: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax vectors, videos and labels of a step."""
    generator = torch.Generator().manual_seed(number)
    logits = 2 * torch.randn(clips, CLASSES, generator=generator) + torch.tensor([1.0, 0.0, 0.0, -1.0])
    labels = torch.randint(0, CLASSES, (4,), generator=generator)
    return logits.softmax(1), torch.randperm(VIDEOS, generator=generator)[:clips], labels


def test_fixed_keeps_what_reaches_the_threshold() -> None:
    p = torch.tensor([[0.2, 0.8, 0, 0], [0.9, 0.1, 0, 0], [0.48, 0.52, 0, 0]])
    videos, labels = torch.arange(3), torch.tensor([0])
    assert policy(0.79)(p, videos, labels)[1].tolist() == [1, 1, 0]
    assert policy(0.85)(p, videos, labels)[1].tolist() == [0, 1, 0]
    assert policy(0.0)(p, videos, labels)[1].all()


def test_flexmatch_is_its_paper_written_out() -> None:
    tested, table = policy(thresholds="flexmatch"), [-1] * VIDEOS
    passed = 0
    for number in range(30):
        p, videos, labels = step(number)
        counts = Counter(table)
        largest = max(counts[k] for k in range(CLASSES))
        wanted = []
        for row in p.tolist():
            k = row.index(max(row))
            b = counts[k] / max(largest, counts[-1])
            wanted.append(0.6 * b / (2 - b))
        for video, row in zip(videos.tolist(), p.tolist(), strict=True):
            if max(row) >= 0.6:
                table[video] = row.index(max(row))
        _, weights, thresholds = tested(p, videos, labels)
        assert thresholds.tolist() == pytest.approx(wanted, rel=1e-5)
        kept = p.amax(1) >= thresholds
        assert weights.tolist() == kept.tolist()
        assert tested.last_label.tolist() == table
        passed += int(weights.sum())
    assert 0 < passed < 240
    assert len(set(table)) == CLASSES + (-1 in table)


def test_flexmatch_with_equal_classes_is_fixed() -> None:
    """Every class has as many confident videos, and none is left: all thresholds are tau."""
    uniform = torch.arange(VIDEOS) % CLASSES
    assert torch.equal(compute_flexmatch_share(uniform, CLASSES, VIDEOS), torch.ones(CLASSES))
    flex, fixed = policy(thresholds="flexmatch"), policy()
    flex.last_label.copy_(uniform)
    p, videos, labels = step(0)
    for mine, its in zip(flex(p, videos, labels), fixed(p, videos, labels), strict=True):
        assert torch.equal(mine, its)


def test_flexmatch_starts_at_zero_and_the_rare_class_stays_low() -> None:
    assert torch.equal(compute_flexmatch_share(torch.full((VIDEOS,), -1), CLASSES, VIDEOS), torch.zeros(CLASSES))
    table = torch.tensor([0] * 20 + [1] * 10 + [-1] * 10)
    assert compute_flexmatch_share(table, CLASSES, VIDEOS).tolist() == pytest.approx([1, 1 / 3, 0, 0])


def test_freematch_is_its_paper_written_out() -> None:
    tested = policy(thresholds="freematch", momentum=0.8)
    tau, mean = 1 / CLASSES, [1 / CLASSES] * CLASSES
    for number in range(30):
        p, videos, labels = step(number)
        rows = p.tolist()
        tau = 0.8 * tau + 0.2 * sum(map(max, rows)) / len(rows)
        mean = [0.8 * old + 0.2 * sum(column) / len(rows) for old, column in zip(mean, zip(*rows, strict=True), strict=True)]
        wanted = [tau * mean[row.index(max(row))] / max(mean) for row in rows]
        _, weights, thresholds = tested(p, videos, labels)
        assert thresholds.tolist() == pytest.approx(wanted, rel=1e-5)
        assert weights.tolist() == [float(max(row) >= limit) for row, limit in zip(rows, thresholds.tolist(), strict=True)]


def test_softmatch_is_its_paper_written_out() -> None:
    tested = policy(thresholds="softmatch", momentum=0.8)
    mean, variance = 1 / CLASSES, 1.0
    for number in range(30):
        p, videos, labels = step(number)
        c = [max(row) for row in p.tolist()]
        now = sum(c) / len(c)
        mean = 0.8 * mean + 0.2 * now
        variance = 0.8 * variance + 0.2 * sum((value - now) ** 2 for value in c) / (len(c) - 1)
        wanted = [1.0 if value >= mean else math.exp(-((value - mean) ** 2) / (2 * variance / 4)) for value in c]
        assert tested(p, videos, labels)[1].tolist() == pytest.approx(wanted, rel=1e-4)
    assert compute_softmatch_weights(torch.tensor([0.5]), torch.tensor(0.5), torch.tensor(0.0)).tolist() == [1]


def test_alignment_turns_the_mean_into_the_target() -> None:
    p = step(0, clips=400)[0]
    target = torch.tensor([0.1, 0.2, 0.3, 0.4])
    aligned = align_probabilities(p, p.mean(0), target)
    assert torch.allclose(aligned.sum(1), torch.ones(400))
    assert (aligned.mean(0) - target).abs().max() < (p.mean(0) - target).abs().max() / 2
    by_hand = p[0] * target / p.mean(0)
    assert torch.allclose(aligned[0], by_hand / by_hand.sum())


@pytest.mark.parametrize(("target", "rare"), [("uniform", 0.25), ("labeled", 0.0)])
def test_alignment_follows_uniform_or_the_labels(target: str, rare: float) -> None:
    tested = policy(distribution_alignment=target, momentum=0.5)
    for number in range(20):
        p, videos, _ = step(number)
        tested(p, videos, torch.tensor([0, 0, 1, 2]))
    assert tested.target[3].item() == pytest.approx(rare, abs=1e-4)
    assert tested.target[0].item() == pytest.approx(0.25 if target == "uniform" else 0.5, abs=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_remembered_is_saved(name: str) -> None:
    one, other = (policy(thresholds=name, distribution_alignment="labeled") for _ in range(2))
    for number in range(5):
        one(*step(number))
    other.load_state_dict(one.state_dict())
    for mine, its in zip(one(*step(9)), other(*step(9)), strict=True):
        assert torch.equal(mine, its)


def _two_workers(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {}
    for name in POLICIES:
        tested = policy(thresholds=name, distribution_alignment="labeled", momentum=0.8)
        outputs = []
        for number in range(6):
            p, videos, labels = step(number)
            mine, own = slice(4 * rank, 4 * rank + 4), slice(2 * rank, 2 * rank + 2)
            outputs.append(tested(p[mine], videos[mine], labels[own]))
        found[name] = (tested.state_dict(), outputs)
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_remember_what_one_does(tmp_path: Path) -> None:
    run_two(_two_workers, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name in POLICIES:
        tested = policy(thresholds=name, distribution_alignment="labeled", momentum=0.8)
        for number in range(6):
            wanted = tested(*step(number))
            for index, value in enumerate(wanted):
                halves = torch.cat([part[name][1][number][index] for part in parts])
                assert torch.allclose(halves, value, atol=1e-6), (name, number)
        for part in parts:
            assert part[name][0].keys() == tested.state_dict().keys()
            assert all(torch.allclose(value, part[name][0][key], atol=1e-6) for key, value in tested.state_dict().items()), name
