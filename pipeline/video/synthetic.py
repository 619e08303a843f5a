"""Synthetic videos of actions that only motion tells apart, as real H.264 files whose classes are known exactly.

Two things make a single frame say nothing about its class. Positions, angles and sizes have the same distributions in all
classes, and opposite classes (left and right, clockwise and counterclockwise, grow and shrink) are each other's time
reversal. An object lives for 2-3 s and is then replaced by one elsewhere, so that the jump back of a growing object looks
like any other. Every video is a function of (seed, index). All of this is our choice and follows no paper.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.processes.isolation import ProcessFailure, map_in_processes
from pipeline.progress import show_progress
from pipeline.video.synthetic_motions import MOTIONS, Floats, Trajectory, compute_log_growth

SIZES = ((96, 72), (80, 96), (80, 80), (128, 72), (80, 128), (112, 84), (96, 96))
"""(width, height) in pixels. decord's frames of videos 72 pixels wide are not exact, so the probe would leave them to PyAV."""
RATES = (Fraction(15), Fraction(16), Fraction(20), Fraction(24000, 1001), Fraction(25))
"""Frames per second."""
MARKER_FILE = ".synthetic.json"
"""Name of a file in a folder of synthetic videos. It says how they were rendered, and marks the folder as replaceable."""
RENDERING_VERSION = 1
"""To be raised when the same arguments give other videos than before."""


@dataclass(frozen=True)
class Difficulty:
    """How hard the actions are to learn. Small students can learn the defaults from few labels."""

    background_contrast: float = 0.02
    """Standard deviation of the background's texture in 0..1. It hides the objects more than anything else here."""
    background_detail: int = 5
    """Cells of the background's texture along the short side."""
    noise: float = 0.01
    """Standard deviation of the noise added to every frame, in 0..1."""
    shake: float = 0.5
    """Standard deviation in pixels of the camera's offset, which is a smooth random walk."""
    objects: int = 3
    """Number of objects, all of which perform the action."""
    distractors: int = 0
    """Number of further objects that stand still. Each is replaced after its life, as the others are."""
    contrast: float = 0.55
    """Smallest difference between an object's brighter color and the background, per channel, 0..0.75. Objects are always
    brighter: when some were darker, a small TimeSformer stayed at chance for 400 steps."""
    min_speed: float = 0.5
    """Slowest motion: short sides of the frame per second, turns per second, or e-folds of size per second."""
    max_speed: float = 0.7
    """Fastest motion."""
    min_radius: float = 0.18
    """Smallest mean radius as a share of the short side."""
    max_radius: float = 0.28
    """Largest mean radius."""
    min_life: float = 2.0
    """Shortest life of an object in seconds."""
    max_life: float = 3.0
    """Longest life."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        for field in dataclasses.fields(self):
            if not math.isfinite(getattr(self, field.name)):
                raise ValueError(f"{field.name} must be a finite number, got {getattr(self, field.name)}")
        for name in ("objects", "background_detail"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for low, high in (("min_speed", "max_speed"), ("min_radius", "max_radius"), ("min_life", "max_life")):
            smallest, largest = getattr(self, low), getattr(self, high)
            if not 0 < smallest <= largest:
                raise ValueError(f"{low} must lie above 0 and {high} not below it, got {smallest} and {largest}")
        if not 0 <= self.contrast <= 0.75:
            raise ValueError(f"contrast must lie between 0 and 0.75, got {self.contrast}")
        for name in ("background_contrast", "noise", "shake", "distractors"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @classmethod
    def from_level(cls, level: float) -> Difficulty:
        """Interpolates every field linearly between EASY (0), the defaults (0.5) and HARD (1), and beyond 1 extrapolates.

        Raises ValueError for a level that is not finite or that leads to impossible values.
        """
        if not math.isfinite(level):
            raise ValueError(f"the level must be a finite number, got {level}")
        low, high, share = (EASY, cls(), level * 2) if level < 0.5 else (cls(), HARD, level * 2 - 1)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            start, stop = getattr(low, field.name), getattr(high, field.name)
            value = start + (stop - start) * share
            values[field.name] = round(value) if isinstance(start, int) else value
        return cls(**values)


EASY = Difficulty(background_contrast=0.0, noise=0.0, shake=0.0, contrast=0.7, min_speed=0.6, max_speed=0.7, min_radius=0.22)
HARD = Difficulty(background_contrast=0.15, noise=0.04, shake=2.0, objects=2, distractors=3, contrast=0.3, min_speed=0.3)
BACKGROUND = (0.05, 0.2)
"""Range of the background's mean color, per channel."""


@dataclass(frozen=True)
class ObjectAppearance:
    """How an object looks, whatever action it performs."""

    shape: str
    aspect: float
    radius: float
    """Pixels."""
    colors: tuple[Floats, Floats]
    """Two RGB colors in 0..1. A part beside the object's center has the second one, so that rotation can be seen."""
    fill: str


SHAPES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "ellipse": lambda u, v, aspect: np.hypot(u, v / aspect),
    "box": lambda u, v, aspect: 1.2 * np.maximum(np.abs(u), np.abs(v) / aspect),
    "diamond": lambda u, v, aspect: 0.8 * (np.abs(u) + np.abs(v) / aspect),
    "triangle": lambda u, v, aspect: 0.8 * np.maximum(-2 * v, v + math.sqrt(3) * np.abs(u) / aspect),
}
"""For each shape a function of (u, v) in radii and the aspect ratio that is below 1 inside the object."""

FILLS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "half": lambda u, v: u + 0 * v,
    "spot": lambda u, v: 0.4 - np.hypot(u - 0.4, v),
    "wedge": lambda u, v: u - np.abs(v),
}
"""For each fill a function of (u, v) in radii that is positive where the object has its second color."""


def render_video(index: int, motion: str, seed: int, difficulty: Difficulty) -> tuple[NDArray[np.uint8], Fraction]:
    """Renders the video with this index: frames [T, H, W, 3] uint8 RGB, which last 2-4 s, and frames per second."""
    rng = np.random.default_rng([seed, index])
    width, height = SIZES[rng.integers(len(SIZES))]
    rate = RATES[rng.integers(len(RATES))]
    frames = int(rng.uniform(2, 4) * rate)
    margin = int(min(width, height) * difficulty.max_radius * 2.5 + 4 * difficulty.shake) + 2
    canvas = _make_background(rng, height + 2 * margin, width + 2 * margin, difficulty)
    motions = [MOTIONS[motion]] * difficulty.objects + [_stand_still] * difficulty.distractors
    objects = [
        (
            _sample_appearance(rng, min(width, height), difficulty),
            _sample_trajectory(rng, move, (width, height), frames, float(rate), difficulty),
        )
        for move in motions
    ]
    objects = [objects[i] for i in rng.permutation(len(objects))]
    offsets_T2 = margin + _sample_camera_offsets(rng, frames, difficulty.shake)
    video = np.empty((frames, height, width, 3), np.uint8)
    scene = np.empty_like(canvas)
    for t in range(frames):
        scene[:] = canvas  # into the same memory: a fresh copy costs three times as much
        for appearance, trajectory in objects:
            _draw_object(scene, appearance, trajectory, t, margin)
        top, left = offsets_T2[t]
        video[t] = _to_uint8(rng, scene[:, top : top + height, left : left + width], difficulty.noise).transpose(1, 2, 0)
    return video, rate


def _stand_still(trajectory: Trajectory) -> None:
    """The motion of distractors: none."""


def _make_background(rng: np.random.Generator, height: int, width: int, difficulty: Difficulty) -> Floats:
    """Returns [3, H, W]: while a scene is drawn its colors are planes, with which numpy computes twice as fast."""
    cell = min(height, width) / difficulty.background_detail
    rows, columns = int(height / cell) + 2, int(width / cell) + 2
    grid = rng.standard_normal((rows, columns, 3)) * difficulty.background_contrast
    weights_y, weights_x = _interpolation_weights(height, rows), _interpolation_weights(width, columns)
    texture = np.einsum("hr,rcx,wc->hwx", weights_y, grid, weights_x, optimize=True)
    return np.asarray((texture + rng.uniform(*BACKGROUND, 3)).transpose(2, 0, 1), np.float32, order="C")


def _interpolation_weights(pixels: int, cells: int) -> Floats:
    """The weights [pixels, cells] of linear interpolation."""
    position = np.linspace(0, cells - 1, pixels, dtype=np.float32)
    return np.asarray(np.clip(1 - np.abs(position[:, None] - np.arange(cells)), 0, 1), np.float32)


def _sample_camera_offsets(rng: np.random.Generator, frames: int, shake: float) -> NDArray[np.int64]:
    """The camera's offsets [T, 2] in whole pixels, which vary smoothly over about a third of a second."""
    steps = rng.standard_normal((frames + 8, 2))
    smooth = np.stack([np.convolve(steps[:, axis], np.full(9, 1 / 3), "valid") for axis in (0, 1)], axis=1)
    return np.asarray(np.rint(np.clip(smooth, -3, 3) * shake), np.int64)


def _sample_appearance(rng: np.random.Generator, side: int, difficulty: Difficulty) -> ObjectAppearance:
    radius = side * math.exp(rng.uniform(math.log(difficulty.min_radius), math.log(difficulty.max_radius)))
    first = rng.uniform(BACKGROUND[1] + difficulty.contrast, 1.0, 3)
    second = rng.uniform(0.35, 0.55, 3)
    shape, fill = rng.choice(list(SHAPES)), rng.choice(list(FILLS))
    colors = (first.astype(np.float32), second.astype(np.float32))
    return ObjectAppearance(str(shape), rng.uniform(0.6, 1.0), radius, colors, str(fill))


def _sample_trajectory(
    rng: np.random.Generator,
    move: Callable[[Trajectory], None],
    size: tuple[int, int],
    frames: int,
    rate: float,
    difficulty: Difficulty,
) -> Trajectory:
    """The trajectory of one object. The pose at which each of its lives begins is drawn independently."""
    seconds = np.arange(frames) / rate
    lives = int(frames / rate / difficulty.min_life) + 3
    length_L = rng.uniform(difficulty.min_life, difficulty.max_life, lives)
    start_L = np.cumsum(length_L) - length_L - rng.uniform(0, length_L[0])
    life_T = np.searchsorted(start_L, seconds, side="right") - 1

    def per_life(low: float, high: float) -> Floats:
        return np.asarray(rng.uniform(low, high, lives)[life_T], np.float32)

    speed, life = per_life(difficulty.min_speed, difficulty.max_speed), length_L[life_T].astype(np.float32)
    trajectory = Trajectory(
        side=float(min(size)),
        x=per_life(0, size[0]),
        y=per_life(0, size[1]),
        angle=per_life(0, 2 * math.pi),
        size=compute_log_growth(speed, life * per_life(-0.5, 0.5)),  # as a growing object has it at a random moment
        swapped=per_life(0, 1) > 0.5,
        age=(seconds - start_L[life_T]).astype(np.float32),
        life=life,
        speed=speed,
    )
    move(trajectory)
    edge = 0.5 * min(size) * difficulty.max_radius
    trajectory.x = (trajectory.x + edge) % (size[0] + 2 * edge) - edge  # what leaves on one side enters on the other
    trajectory.y = (trajectory.y + edge) % (size[1] + 2 * edge) - edge
    return trajectory


def _draw_object(scene: Floats, appearance: ObjectAppearance, trajectory: Trajectory, t: int, margin: int) -> None:
    """Blends the object into the scene [3, H, W], with edges that are soft over one pixel."""
    radius = float(appearance.radius * math.exp(trajectory.size[t]))
    reach = min(int(1.5 * radius) + 2, margin)
    x, y = float(trajectory.x[t]) + margin, float(trajectory.y[t]) + margin
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    patch = scene[:, top : int(y) + reach + 1, left : int(x) + reach + 1]
    dy = (np.arange(top, top + patch.shape[1], dtype=np.float32) - y)[:, None] / radius
    dx = (np.arange(left, left + patch.shape[2], dtype=np.float32) - x)[None, :] / radius
    cos, sin = math.cos(float(trajectory.angle[t])), math.sin(float(trajectory.angle[t]))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    inside = np.clip((1 - SHAPES[appearance.shape](u, v, appearance.aspect)) * radius + 0.5, 0, 1)
    second = np.clip(FILLS[appearance.fill](u, v) * radius + 0.5, 0, 1)
    first_color, second_color = reversed(appearance.colors) if trajectory.swapped[t] else appearance.colors
    color = first_color[:, None, None] + second * (second_color - first_color)[:, None, None]
    patch += inside * (color - patch)


def _to_uint8(rng: np.random.Generator, frame: Floats, noise: float) -> NDArray[np.uint8]:
    if noise > 0:
        frame = frame + noise * rng.standard_normal(frame.shape[1:], np.float32)
    return np.asarray(np.clip(frame * 255 + 0.5, 0, 255), np.uint8)


def write_video(path: Path, frames_THWC: NDArray[np.uint8], rate: Fraction, **options: str) -> None:
    """Encodes RGB frames of even width and height as H.264, in the container that the path's suffix names.

    x264's macroblock tree is off because it reads memory that it did not write: with it 5 of 10 videos had other bytes in
    every process, without it none in 5 repeats. The coding is made to be decoded fast, since a demo on two cores spends as
    much on decoding as on training: 6.9 ms of one core for both students' clips instead of 15.6 (24 videos, least of 3).
    x264's detection of scene cuts is off, too. Where an object is replaced it would place key frames at which decoding cannot
    begin, and the probe leaves such videos to PyAV.
    """
    settings = {"crf": "26", "preset": "veryfast", "tune": "fastdecode", "bf": "0", "refs": "1", "g": "24", "threads": "1"}
    settings = {**settings, "x264-params": "mbtree=0:scenecut=0", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=settings)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        reformatter = VideoReformatter()  # a frame's own reformat() makes a new one each time, which took half of all time
        for image in frames_THWC:
            # converted by us: the encoder's own conversion made other bytes in the first file of a process than in the next
            frame = reformatter.reformat(av.VideoFrame.from_ndarray(image, format="rgb24"), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@dataclass(frozen=True)
class _RenderJob:
    path: Path
    index: int
    motion: str
    seed: int
    difficulty: Difficulty


def _render_to_file(job: _RenderJob) -> None:
    frames, rate = render_video(job.index, job.motion, job.seed, job.difficulty)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    write_video(job.path, frames, rate)


def render_folder(
    folder: Path, videos: int, classes: int, seed: int, difficulty: Difficulty, processes: int | None = None
) -> None:
    """Renders videos to ``folder/<class>/<index>.mp4``; index i has class i modulo ``classes``, in the order of ``MOTIONS``.

    ``folder/.synthetic.json`` says how they were rendered; it also marks the folder as one that may be replaced.
    """
    assert 1 <= classes <= len(MOTIONS) and classes <= videos
    names = [list(MOTIONS)[i % classes] for i in range(videos)]
    jobs = [_RenderJob(folder / name / f"{i:05d}.mp4", i, name, seed, difficulty) for i, name in enumerate(names)]
    for index, result in show_progress(map_in_processes(_render_to_file, jobs, processes), videos, "rendered"):
        if isinstance(result, ProcessFailure):
            raise RuntimeError(f"{jobs[index].path}: {result.reason}")
    description = _describe_rendering(videos, classes, seed, difficulty) | {"content": _hash_folder(folder)}
    (folder / MARKER_FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")


def is_rendered(folder: Path, videos: int, classes: int, seed: int, difficulty: Difficulty) -> bool:
    """Whether the folder holds what ``render_folder`` would write into it, and nothing else."""
    try:
        stored = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    expected = _describe_rendering(videos, classes, seed, difficulty)
    return bool(stored == expected | {"content": stored.get("content")} and stored["content"] == _hash_folder(folder))


def _describe_rendering(videos: int, classes: int, seed: int, difficulty: Difficulty) -> dict[str, Any]:
    arguments = {"videos": videos, "classes": classes, "seed": seed, "difficulty": dataclasses.asdict(difficulty)}
    return {**arguments, "rendering": RENDERING_VERSION}


def _hash_folder(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files but the marker file."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER_FILE):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
