"""Synthetic videos are deterministic, and only motion distinguishes their classes."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.video.synthetic import EASY, HARD, RATES, SIZES, Difficulty, render_folder, render_video, write_video
from pipeline.video.synthetic_motions import MOTIONS, Floats, Trajectory

NAMES = list(MOTIONS)[:8]
VIDEOS = 160
CHANCE = 1 / 8


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Floats, NDArray[np.int64]]:
    """Two frames, an eighth of a second apart, at a random moment of N encoded videos [N, 2, 16, 16, 3], and the labels."""
    path, rng = tmp_path_factory.mktemp("synthetic") / "v.mp4", np.random.default_rng(1)
    pairs = []
    for index in range(VIDEOS):
        video, rate = render_video(index, NAMES[index % 8], 0, Difficulty())
        write_video(path, video[:40], rate)
        with av.open(str(path)) as container:
            step = round(float(container.streams.video[0].average_rate or 0) / 8)
            frames = list(container.decode(video=0))
        first = int(rng.integers(5, len(frames) - step))
        pairs.append([frames[at].to_ndarray(format="rgb24", width=16, height=16) / 255.0 for at in (first, first + step)])
    return np.array(pairs, np.float32), np.arange(VIDEOS) % 8


def accuracy(features: Floats, labels: NDArray[np.int64], ridge: float = 1.0) -> float:
    """Mean test accuracy of a linear classifier over 4 x 4-fold cross-validation; features are standardized."""
    flat = features.reshape(len(features), -1)
    flat = (flat - flat.mean(0)) / (flat.std(0) + 1e-6)
    scores = []
    for seed in range(4):
        for test in np.array_split(np.random.default_rng(seed).permutation(len(flat)), 4):
            train = np.setdiff1d(np.arange(len(flat)), test)
            kernel = flat[train] @ flat[train].T + ridge * flat.shape[1] * np.eye(len(train))
            weights = flat[train].T @ np.linalg.solve(kernel, np.eye(8)[labels[train]] - CHANCE)
            scores.append(float((np.argmax(flat[test] @ weights, 1) == labels[test]).mean()))
    return float(np.mean(scores))


def test_the_class_cannot_be_learned_from_one_frame(snippets: tuple[Floats, NDArray[np.int64]]) -> None:
    pairs, labels = snippets
    gray = pairs[:, 0].mean(-1)
    features = {
        "color": pairs[:, 0],
        "gray": gray,
        "contrast": np.abs(gray - np.median(gray, (1, 2), keepdims=True)),
        "edges": np.abs(np.stack(np.gradient(gray, axis=(1, 2)))).transpose(1, 0, 2, 3),
    }
    accuracies = {name: accuracy(feature, labels) for name, feature in features.items()}
    assert max(accuracies.values()) < 2 * CHANCE, accuracies


def test_the_class_can_be_learned_from_two_frames(snippets: tuple[Floats, NDArray[np.int64]]) -> None:
    pairs, labels = snippets
    assert accuracy(motion(pairs), labels, ridge=0.01) > 3 * CHANCE


def motion(pairs: Floats) -> Floats:
    """Change times gradient [N, 4], which measures shift along x and y, rotation, and growth around the changing part."""
    gray = pairs.mean(-1)
    change = gray[:, 1] - gray[:, 0]
    down, right = np.gradient(gray.mean(1), axis=(1, 2))
    weight = change**2 + 1e-9
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    y = y - ((weight * y).sum((1, 2)) / weight.sum((1, 2)))[:, None, None]
    x = x - ((weight * x).sum((1, 2)) / weight.sum((1, 2)))[:, None, None]
    parts: list[Any] = [change * right, change * down, change * (x * down - y * right), change * (x * right + y * down)]
    return np.stack([part.mean((1, 2)) / weight.mean((1, 2)) ** 0.5 for part in parts], axis=1)


def still_trajectory(frames: int = 48) -> Trajectory:
    def full(value: float) -> Floats:
        return np.full(frames, value, np.float32)

    age = np.arange(frames, dtype=np.float32) / 24
    return Trajectory(100.0, full(50), full(40), full(1), full(0.1), np.zeros(frames, bool), age, full(2), full(0.5))


def test_motions_do_what_their_names_say() -> None:
    def change(name: str, field: str) -> Floats:
        trajectory = still_trajectory()
        MOTIONS[name](trajectory)
        return np.diff(getattr(trajectory, field).astype(float))

    assert np.allclose(change("drift_left", "x"), -50 / 24, atol=1e-3) and not change("drift_left", "y").any()
    assert np.allclose(change("drift_right", "x"), 50 / 24, atol=1e-3)
    assert np.allclose(change("drift_up", "y"), -50 / 24, atol=1e-3) and not change("drift_up", "x").any()
    assert np.allclose(change("drift_down", "y"), 50 / 24, atol=1e-3)
    assert np.allclose(change("rotate_clockwise", "angle"), np.pi / 24, atol=1e-3)
    assert np.allclose(change("rotate_counterclockwise", "angle"), -np.pi / 24, atol=1e-3)
    assert np.allclose(change("grow", "size"), 0.5 / 24, atol=1e-3)
    assert np.allclose(change("shrink", "size"), -0.5 / 24, atol=1e-3)


@pytest.mark.parametrize("name", MOTIONS)
def test_every_motion_moves(name: str) -> None:
    trajectory = still_trajectory()
    MOTIONS[name](trajectory)
    assert any(np.ptp(getattr(trajectory, f).astype(float)) > 0 for f in ("x", "y", "angle", "size", "swapped"))
    fields = [getattr(trajectory, f) for f in ("x", "y", "angle", "size")]
    assert all(np.isfinite(values).all() and values.shape == (48,) for values in fields)


def test_a_growing_angle_rotates_clockwise_on_the_screen() -> None:
    """A single bright spot beside the center moves right, then down, as a clock's hand does from 12 to 6."""
    from pipeline.video.synthetic import ObjectAppearance, _draw_object

    trajectory = still_trajectory(2)
    trajectory.angle = np.array([-np.pi / 2, 0], np.float32)  # spot at 12, then a quarter turn clockwise
    dark, bright = np.zeros(3, np.float32), np.ones(3, np.float32)
    centers = []
    for t in (0, 1):
        scene = np.zeros((3, 100, 120), np.float32)
        _draw_object(scene, ObjectAppearance("ellipse", 1.0, 20.0, (dark, bright), "spot"), trajectory, t, margin=10)
        rows, columns = np.nonzero(scene[0] > 0.5)
        centers.append((columns.mean() - 60, rows.mean() - 50))
    assert centers[0][1] < -5 and abs(centers[0][0]) < 1
    assert centers[1][0] > 5 and abs(centers[1][1]) < 1


def test_render_is_a_function_of_seed_and_index() -> None:
    frames, rate = render_video(3, "grow", 7, Difficulty())
    again, _ = render_video(3, "grow", 7, Difficulty())
    np.testing.assert_array_equal(frames, again)
    assert not np.array_equal(frames, render_video(3, "shrink", 7, Difficulty())[0])
    others = [render_video(index, "grow", seed, Difficulty())[0] for index, seed in ((4, 7), (3, 8))]
    assert all(other.shape != frames.shape or (other != frames).mean() > 0.2 for other in others)
    assert (frames.shape[2], frames.shape[1]) in SIZES and rate in RATES
    assert 2 <= len(frames) / rate + Fraction(1, 15) <= 4.1


@pytest.mark.parametrize("level", [0, 0.3, 0.5, 0.8, 1])
def test_levels_are_interpolated(level: float) -> None:
    difficulty = Difficulty.from_level(level)
    assert EASY.noise <= difficulty.noise <= HARD.noise
    frames, _ = render_video(0, "shrink", 0, difficulty)
    assert frames.std() > 3


def test_levels_0_and_1_are_the_ends_and_impossible_values_are_refused() -> None:
    assert (Difficulty.from_level(0), Difficulty.from_level(0.5), Difficulty.from_level(1)) == (EASY, Difficulty(), HARD)
    for wrong in ({"objects": 0}, {"noise": -0.1}, {"contrast": 0.8}, {"min_speed": 0.9, "max_speed": 0.5}, {"min_life": 0.0},
                  {"noise": math.nan}, {"max_life": math.inf}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Difficulty(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the level must be a finite number, got nan"):
        Difficulty.from_level(math.nan)


@pytest.mark.usefixtures("in_child_processes")
def test_folder_is_complete_and_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    short = Difficulty(objects=1)
    for folder, processes in (("one", 1), ("two", 2)):
        render_folder(tmp_path / folder, 5, 2, 0, short, processes)
    names = sorted(path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").rglob("*.mp4"))
    assert names == [f"drift_left/0000{i}.mp4" for i in (0, 2, 4)] + [f"drift_right/0000{i}.mp4" for i in (1, 3)]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
