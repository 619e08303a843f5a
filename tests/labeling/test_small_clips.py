"""Near-duplicates are videos that show the same, however compressed, and not all dark or flat ones."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.labeling.small_clips import NearDuplicates, SmallClip, compute_difference_hash

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
    return SmallClip("an image", compute_difference_hash(frames))


def test_a_copy_is_found_among_others() -> None:
    scenes = [draw_scene() for _ in range(20)]
    known = NearDuplicates()
    known.add(map(clip, scenes))
    assert all(known.has(clip(compress(scene))) for scene in scenes)
    assert not any(known.has(clip(draw_scene())) for _ in range(50))


def test_dark_and_flat_videos_are_no_copies_of_each_other() -> None:
    dark = np.zeros((3, 144, 192, 3), np.uint8)
    noise = RNG.integers(0, 3, dark.shape, dtype=np.uint8)
    videos = [dark, noise, np.full_like(dark, 200), make_plain(120, 200, 40, 40), make_plain(60, 10, 140, 110)]
    for one in videos:
        known = NearDuplicates()
        known.add([clip(one)])
        assert not any(known.has(clip(other)) for other in videos if other is not one)
