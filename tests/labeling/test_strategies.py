"""What the measures and strategies choose, against loops and by their properties."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.files.parquet import METADATA_KEY
from pipeline.labeling import opinions as module
from pipeline.labeling.candidates import Wish
from pipeline.labeling.measures import compute_measures
from pipeline.labeling.opinions import Opinions, PredictedScores, TrainingScores, read_opinions, read_probabilities
from pipeline.labeling.ranking import Ranking
from pipeline.labeling.strategies import STRATEGIES, choose_balanced, choose_diverse, rank_videos
from pipeline.manifest.schema import Manifest
from tests.manifest.tables import make_table
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
        wanted["unfamiliar"] = 1 - best[-1]
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            assert found[name][index] == pytest.approx(value, abs=1e-9), name


def test_measures_reach_their_ends() -> None:
    certain, other = np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]])
    assert {name: value[0] for name, value in compute_measures(certain, certain).items()} == pytest.approx(
        {"disagreement": 0, "entropy": 0, "margin": 0, "unfamiliar": 0}
    )
    assert compute_measures(certain, other)["disagreement"][0] == pytest.approx(1)
    even = compute_measures(np.full((1, 3), 1 / 3), np.full((1, 3), 1 / 3))
    assert even["entropy"][0] == pytest.approx(1) and even["unfamiliar"][0] == pytest.approx(2 / 3)


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
    latest = (primary[-1] + auxiliary[-1]).argmax(axis=1)
    assert found.classes.tolist() == [*latest, -1, -1]
    probabilities = read_probabilities(scores, np.array([4, 2]), 8)
    wanted = np.stack([primary[recent][:, [4, 2]].mean(axis=0), auxiliary[recent][:, [4, 2]].mean(axis=0)], axis=1)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-6)


def test_a_video_that_was_not_seen_lately_has_its_latest_clip(tmp_path: Path) -> None:
    early = draw(2, 4).astype(np.float32)
    tensors = {"primary": torch.tensor(early), "auxiliary": torch.tensor(early)}
    write_scores(tmp_path, torch.tensor([-1, -1]), tensors)
    scores = TrainingScores(tmp_path)
    scores.recent_from = 99
    found = read_opinions(scores, 2)
    assert found.measures["entropy"] == pytest.approx(
        compute_measures(early.astype(float), early.astype(float))["entropy"], abs=1e-6
    )
    np.testing.assert_allclose(read_probabilities(scores, np.array([1]), 2)[0, 0], early[1], atol=1e-7)


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
    counts = np.full(len(values), 5, np.int32)
    return Opinions({name: values for name in ("disagreement", "entropy", "margin")}, 1 - values, counts, 0 * counts)


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
    classes = np.array([0, 0, 0, 0, 7, 7, 2])
    chosen = choose_balanced(classes, 5)
    assert Counter(classes[chosen].tolist()) == {0: 2, 7: 2, 2: 1} and chosen.tolist() == [0, 4, 6, 1, 5]
    assert choose_balanced(classes, 0).tolist() == [] and choose_balanced(classes[:0], 5).tolist() == []
    assert sorted(choose_balanced(classes, 99)) == list(range(7))


def test_a_diverse_choice_among_many_takes_a_moment() -> None:
    """One choice among 20,000 videos took 0.1 s, so that 1000 took minutes; the bound is for a busy machine."""
    points = RNG.dirichlet(np.full(50, 0.4), (20_000, 2))
    begun = time.process_time()
    assert len(set(choose_diverse(points, np.ones(len(points)), 100, 0))) == 100
    assert time.process_time() - begun < 5


def write_predictions(path: Path, probabilities: np.ndarray, classes: tuple[str, ...]) -> Manifest:
    """Writes predictions of new videos [N, K], and returns their manifest; rows of NaN stand for videos that failed."""
    table = make_table({"v": len(probabilities)}).sort_by("id")
    manifest = Manifest(table, classes, "/videos", "folder", "0" * 16, "m.parquet")
    failed = np.isnan(probabilities).any(axis=1)
    lists = pa.array(
        [None if bad else row for bad, row in zip(failed, probabilities.tolist(), strict=True)], pa.list_(pa.float32())
    )
    columns = {"file": table["id"], "status": np.where(failed, "missing", "ok"), "primary": lists, "auxiliary": lists}
    about = {"classes": classes, "manifest": "0" * 16}
    pq.write_table(pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(about).encode()}), path)
    return manifest


@pytest.mark.parametrize("strategy", ["mixed", "entropy", "diverse"])
def test_balanced_suggestions_have_every_class_although_two_are_the_most_uncertain(tmp_path: Path, strategy: Any) -> None:
    """The 600 most uncertain of 3000 videos are of two classes; a pool of the most uncertain had no others."""
    true, share = RNG.integers(0, 10, 3000), 0.9 - 0.2 * RNG.random(3000)
    scores = np.repeat(((1 - share) / 9)[:, None], 10, axis=1)
    scores[np.arange(3000), true] = share
    confused = true < 2
    scores[confused] = 0.03
    scores[confused, :2] = 0.38
    scores[np.flatnonzero(confused), true[confused]] += 0.005
    scores /= scores.sum(axis=1, keepdims=True)
    manifest = write_predictions(tmp_path / "p.parquet", scores, tuple("abcdefghij"))
    source, wish = PredictedScores(tmp_path / "p.parquet", manifest), Wish(40, strategy, 0, balanced=True)
    found = read_opinions(source, 3000)
    ranked, unused = rank_videos(strategy, found, np.arange(3000), 0), cast(Any, None)
    chosen, _, probabilities = Ranking(wish, source, found, *ranked, unused, unused, "", ()).choose(40)
    assert Counter(probabilities.mean(axis=1).argmax(axis=1).tolist()) == dict.fromkeys(range(10), 4)
    assert len(set(chosen.tolist())) == 40


def test_predictions_of_which_a_piece_or_all_failed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 4)  # 2 rows, or more where many failed
    scores = np.concatenate([draw(2, 2), np.full((4, 2), np.nan), draw(2, 2)])
    manifest = write_predictions(tmp_path / "p.parquet", scores, ("a", "b"))
    found = read_opinions(PredictedScores(tmp_path / "p.parquet", manifest), 8)
    assert found.clips.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    manifest = write_predictions(tmp_path / "p.parquet", scores[2:6], ("a", "b"))
    source = PredictedScores(tmp_path / "p.parquet", manifest)
    assert not read_opinions(source, 4).clips.any()
    with pytest.raises(UserError, match="holds no scores"):
        read_probabilities(source, np.arange(2), 4)


def test_the_memory_of_a_piece_does_not_grow_with_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 2**12)
    for classes in (4, 64):
        write_scores(tmp_path, torch.full((3000,), -1), {name: torch.tensor(draw(3000, classes)) for name in STUDENTS})
        pieces = [piece.primary.size for piece in TrainingScores(tmp_path).read()]
        assert sum(pieces) == 3000 * classes and max(pieces) == 2**12


def test_the_command_of_a_million_predictions_runs_with_a_few() -> None:
    command = [sys.executable, "-m", "tests.labeling.million", "2000"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and found.stdout.startswith("2,000 videos, 400 classes"), found.stderr
    assert [line.partition(":")[0] for line in found.stdout.splitlines()[1:]] == list(STRATEGIES)
