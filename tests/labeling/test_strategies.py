"""What the measures and strategies choose, against loops and by their properties."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.labeling import opinions as module
from pipeline.labeling.measures import compute_measures
from pipeline.labeling.opinions import Opinions, TrainingScores, read_opinions, read_probabilities
from pipeline.labeling.strategies import choose_balanced, choose_diverse, rank_videos
from tests.study_folders import write_scores

RNG = np.random.default_rng(0)


def draw(rows: int, classes: int = 5) -> np.ndarray:
    return RNG.dirichlet(np.full(classes, 0.4), rows)


def test_measures_equal_loops() -> None:
    primary, auxiliary = draw(50), draw(50)
    found = compute_measures(primary, auxiliary)
    for index in range(50):
        mean = [(p + a) / 2 for p, a in zip(primary[index], auxiliary[index], strict=True)]
        entropy, one, two = (-sum(p * math.log(p) for p in row if p > 0) for row in (mean, primary[index], auxiliary[index]))
        best = sorted(mean)
        wanted = {"entropy": entropy / math.log(5), "disagreement": (entropy - (one + two) / 2) / math.log(2)}
        wanted["margin"] = 1 - (best[-1] - best[-2])
        for name, value in wanted.items():
            assert found[name][index] == pytest.approx(value, abs=1e-9), name


def test_measures_reach_their_ends() -> None:
    certain, other = np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]])
    assert {name: value[0] for name, value in compute_measures(certain, certain).items()} == pytest.approx(
        {"disagreement": 0, "entropy": 0, "margin": 0}
    )
    assert compute_measures(certain, other)["disagreement"][0] == pytest.approx(1)
    assert compute_measures(np.full((1, 3), 1 / 3), np.full((1, 3), 1 / 3))["entropy"][0] == pytest.approx(1)


def save(folder: Path, steps: int, videos: int = 6, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Saves other scores of each of ``videos`` videos at each step; returns them [steps, videos, classes]."""
    both = [draw(steps * videos, classes).reshape(steps, videos, classes).astype(np.float32) for _ in range(2)]
    from pipeline.clips.batch import Batch
    from pipeline.training.monitoring.score_log import ScoreLog

    rows = torch.arange(videos)
    batch = Batch(rows, rows[:, None].repeat(1, 2), torch.full((videos, 2), -1), torch.zeros(1), torch.zeros(1))
    for first in range(0, steps, 4):
        log = ScoreLog(1, folder, rank=0, step=first)
        for step in range(first, min(first + 4, steps)):
            log.keep(
                step + 1,
                {"scores/primary": torch.tensor(both[0][step]), "scores/auxiliary": torch.tensor(both[1][step])},
                batch,
            )
        log.write(min(first + 4, steps))
    return both[0], both[1]


@pytest.mark.parametrize("piece", [3, 1000])
def test_opinions_are_means_over_the_last_third_however_the_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    primary, auxiliary = save(tmp_path, 10)
    scores = TrainingScores(tmp_path)
    assert scores.recent_from == 7
    found = read_opinions(scores, 8)
    recent = slice(6, 10)
    for row in range(6):
        measures = compute_measures(primary[recent, row].astype(float), auxiliary[recent, row].astype(float))
        for name, values in measures.items():
            assert found.measures[name][row] == pytest.approx(values.mean(), abs=1e-5), name
        classes = (primary[:, row] + auxiliary[:, row]).argmax(axis=1)
        assert found.changes[row] == pytest.approx((classes[1:] != classes[:-1]).sum() / 9)
    assert found.clips.tolist() == [10] * 6 + [0, 0]
    probabilities = read_probabilities(scores, np.array([4, 2]), 8)
    wanted = np.stack([primary[recent][:, [4, 2]].mean(axis=0), auxiliary[recent][:, [4, 2]].mean(axis=0)], axis=1)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-6)


def test_a_video_that_was_not_seen_lately_has_its_latest_clip(tmp_path: Path) -> None:
    early, late = draw(2, 4).astype(np.float32), draw(1, 4).astype(np.float32)
    tensors = {"primary": torch.tensor(early), "auxiliary": torch.tensor(early)}
    write_scores(tmp_path, torch.tensor([-1, -1]), tensors)
    scores = TrainingScores(tmp_path)
    scores.recent_from = 99
    found = read_opinions(scores, 2)
    assert found.measures["entropy"] == pytest.approx(
        compute_measures(early.astype(float), early.astype(float))["entropy"], abs=1e-6
    )
    np.testing.assert_allclose(read_probabilities(scores, np.array([1]), 2)[0, 0], early[1], atol=1e-7)
    assert late.shape == (1, 4)


def test_scores_of_another_manifest_or_of_no_probabilities_are_refused(tmp_path: Path) -> None:
    write_scores(tmp_path, torch.tensor([-1] * 3), {name: torch.full((3, 4), 0.25) for name in ("primary", "auxiliary")})
    with pytest.raises(UserError, match="belongs to another one"):
        read_opinions(TrainingScores(tmp_path), 2)
    write_scores(tmp_path, torch.tensor([-1] * 3), {name: torch.full((3, 4), 0.5) for name in ("primary", "auxiliary")})
    with pytest.raises(UserError, match="do not sum to 1"):
        read_opinions(TrainingScores(tmp_path), 3)
    with pytest.raises(UserError, match="no saved scores"):
        TrainingScores(tmp_path / "elsewhere")


def make_opinions(entropy: list[float]) -> Opinions:
    values = np.array(entropy, np.float32)
    return Opinions(
        {name: values for name in ("disagreement", "entropy", "margin")}, 1 - values, np.full(len(values), 5, np.int32)
    )


def test_uncertain_videos_come_first_and_random_ones_do_not_follow_it() -> None:
    found = make_opinions(np.linspace(0, 1, 200).tolist())
    rows = np.arange(200)
    assert rank_videos("entropy", found, rows, 0)[0].tolist() == rows[::-1].tolist()
    assert rank_videos("unstable", found, rows, 0)[0].tolist() == rows.tolist()
    chance, again = rank_videos("random", found, rows, 0)[0], rank_videos("random", found, rows, 1)[0]
    assert sorted(chance) == rows.tolist() and chance.tolist() not in (rows.tolist(), again.tolist())
    assert abs(np.corrcoef(chance, rows)[0, 1]) < 0.2


def test_diverse_choices_cover_groups_that_uncertainty_alone_would_not() -> None:
    centers = np.eye(6)[:, None].repeat(2, axis=1)
    crowd = np.repeat(centers[:1], 60, axis=0) * 0.9 + 0.1 / 6
    points = np.concatenate([crowd, centers * 0.9 + 0.1 / 6])
    for seed in range(5):
        chosen = choose_diverse(points, np.ones(len(points)), 6, seed)
        assert len({int(points[index].mean(axis=0).argmax()) for index in chosen}) == 6
    assert sorted(choose_diverse(points[:3], np.ones(3), 5, 0)) == [0, 1, 2]
    assert sorted(choose_diverse(np.ones((4, 2, 3)) / 3, np.ones(4), 3, 0)) == [0, 1, 2]  # all are equal
    assert choose_diverse(points, np.ones(len(points)), 0, 0) == []


def test_balanced_choices_take_turns() -> None:
    classes = [0, 0, 0, 0, 1, 1, 2]
    chosen = choose_balanced(range(7), classes, 5)
    assert Counter(classes[index] for index in chosen) == {0: 2, 1: 2, 2: 1} and chosen[:3] == [0, 4, 6]
