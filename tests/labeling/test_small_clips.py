"""Near-duplicates are videos that show the same, however compressed, and not all dark or flat ones."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipeline.labeling.small_clips import NearDuplicates, SmallClip, compute_difference_hash, compute_motion

RNG = np.random.default_rng(0)


def draw_scene(count: int = 3) -> np.ndarray:
    """Draws frames [N, H, W, 3] of something that has light and dark places, and moves."""
    small = Image.fromarray(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((224, 160), Image.Resampling.BICUBIC)
    return np.stack([np.roll(np.asarray(small), 4 * number, axis=1) for number in range(count)])


def make_plain(background: int, thing: int, x: int, y: int) -> np.ndarray:
    """Makes frames of a small thing that moves before a plain background."""
    frames = np.full((3, 144, 192, 3), background, np.uint8)
    for number, frame in enumerate(frames):
        frame[y - 8 : y + 8, x + 10 * number : x + 10 * number + 12] = thing
    return frames


def compress(frames: np.ndarray) -> np.ndarray:
    """Compresses frames as JPEG, at three quarters of their size."""
    out = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).resize((168, 120)).save(buffer, "JPEG", quality=40)
        out.append(np.asarray(Image.open(buffer)))
    return np.stack(out)


def clip(frames: np.ndarray) -> SmallClip:
    return SmallClip("an image", compute_difference_hash(frames[[0, len(frames) // 2, -1]]), compute_motion(frames))


def draw_scenes_of_one_camera() -> list[np.ndarray]:
    """Draws videos [16, H, W, 3] in which somebody walks, each time elsewhere or faster, before the same background."""
    background = draw_scene(1)[0]
    videos = []
    for x, y, step in itertools.product((10, 80), (5, 55, 105), (2, 5)):
        video = np.stack([background] * 16)
        for number, frame in enumerate(video):
            frame[y : y + 50, x + step * number : x + step * number + 20] = 90
        videos.append(video)
    return videos


def test_a_copy_is_found_among_others() -> None:
    scenes = [draw_scene() for _ in range(20)]
    known = NearDuplicates()
    known.add(map(clip, scenes))
    assert all(known.has(clip(compress(scene))) for scene in scenes)
    assert not any(known.has(clip(draw_scene())) for _ in range(50))


def test_videos_of_a_fixed_camera_are_no_copies_of_each_other() -> None:
    videos = [clip(video) for video in draw_scenes_of_one_camera()]
    alike = sum(int((one.bits != other.bits).sum()) <= 19 for one in videos for other in videos) - len(videos)
    assert alike > 12  # by looks alone many were
    for one in videos:
        known = NearDuplicates()
        known.add([one])
        assert not any(known.has(other) for other in videos if other is not one)
    known = NearDuplicates()
    scenes = draw_scenes_of_one_camera()[:5]
    known.add(map(clip, scenes))
    assert all(known.has(clip(compress(scene))) for scene in scenes)


def test_videos_in_which_nothing_moves_are_compared_by_looks() -> None:
    still = np.repeat(draw_scene(1), 16, axis=0)
    known = NearDuplicates()
    known.add([clip(still)])
    assert known.has(clip(compress(still)))
    moving = draw_scene(16)
    assert not len(clip(still).motion) and len(clip(moving).motion) == 15 * 16 * 16
    assert not known.has(clip(moving))


def test_dark_and_flat_videos_are_no_copies_of_each_other() -> None:
    dark = np.zeros((3, 144, 192, 3), np.uint8)
    noise = RNG.integers(0, 3, dark.shape, dtype=np.uint8)
    videos = [dark, noise, np.full_like(dark, 200), make_plain(120, 200, 40, 40), make_plain(60, 10, 140, 110)]
    for one in videos:
        known = NearDuplicates()
        known.add([clip(one)])
        assert not any(known.has(clip(other)) for other in videos if other is not one)


def test_real_clips_of_a_fixed_camera(shared_data: Path) -> None:
    paths = sorted((shared_data / "utd_mhad_depth").glob("a0[1-3]*/*_s[12]_t[12].mp4"))
    videos = []
    for path in paths:
        with av.open(str(path)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        videos.append(frames[np.linspace(0, len(frames) - 1, 16).round().astype(int)])
    clips, known = [clip(video) for video in videos], NearDuplicates()
    for one in clips:
        assert not known.has(one)
        known.add([one])
    assert len(clips) == 12 and all(known.has(clip(compress(video))) for video in videos)
