"""The laws by which synthetic objects move. Each starts from a pose that is drawn the same way for every class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass
class Pose:
    """One object over T frames; every field but ``side`` is [T]."""

    side: float
    """Short side of the frame in pixels."""
    x: Floats
    """Center in pixels, as ``y``."""
    y: Floats
    angle: Floats
    """Radians."""
    size: Floats
    """Logarithm of the factor on the radius."""
    swapped: NDArray[np.bool_]
    """Whether its two colors are exchanged."""
    age: Floats
    """Seconds since the present life began."""
    life: Floats
    """Length of the present life in seconds."""
    speed: Floats


def _drift(pose: Pose, dx: float, dy: float) -> None:
    way = pose.speed * pose.side * (pose.age - pose.life / 2)
    pose.x += dx * way
    pose.y += dy * way


def _rotate(pose: Pose, sign: int) -> None:
    pose.angle += sign * 2 * math.pi * pose.speed * pose.age


def _grow(pose: Pose, sign: int) -> None:
    pose.size = sign * log_growth(pose.speed, pose.age - pose.life / 2)


def _bounce(pose: Pose) -> None:
    turns = pose.speed * 2 * pose.age + pose.angle  # the angle is uniform: a phase like any other
    pose.y -= 0.5 * pose.side * np.abs(np.sin(math.pi * turns))


def _shake(pose: Pose) -> None:
    pose.x += 0.12 * pose.side * np.sin(2 * math.pi * 4 * pose.speed * pose.age + pose.angle)


def _orbit(pose: Pose) -> None:
    phase = 2 * math.pi * 1.5 * pose.speed * pose.age + pose.angle
    pose.x += 0.25 * pose.side * np.cos(phase)
    pose.y += 0.25 * pose.side * np.sin(phase)


def _blink(pose: Pose) -> None:
    pose.swapped ^= np.sin(2 * math.pi * 4 * pose.speed * pose.age + pose.angle) > 0


def log_growth(speed: Floats, seconds: Floats) -> Floats:
    """Logarithm of the size's change in this time."""
    return np.asarray(speed * seconds, np.float32)


DIAGONAL = math.sqrt(0.5)
MOTIONS: dict[str, Callable[[Pose], None]] = {
    "drift_left": lambda pose: _drift(pose, -1, 0),
    "drift_right": lambda pose: _drift(pose, 1, 0),
    "drift_up": lambda pose: _drift(pose, 0, -1),
    "drift_down": lambda pose: _drift(pose, 0, 1),
    "drift_up_left": lambda pose: _drift(pose, -DIAGONAL, -DIAGONAL),
    "drift_up_right": lambda pose: _drift(pose, DIAGONAL, -DIAGONAL),
    "drift_down_left": lambda pose: _drift(pose, -DIAGONAL, DIAGONAL),
    "drift_down_right": lambda pose: _drift(pose, DIAGONAL, DIAGONAL),
    "rotate_clockwise": lambda pose: _rotate(pose, 1),  # y points down, so a growing angle turns clockwise
    "rotate_counterclockwise": lambda pose: _rotate(pose, -1),
    "grow": lambda pose: _grow(pose, 1),
    "shrink": lambda pose: _grow(pose, -1),
    "bounce": _bounce,
    "shake": _shake,
    "orbit": _orbit,
    "blink": _blink,
}
"""The first eight, the default, both small students learn from few labels. Turning and growing they learn only from many:
from all 240 a Slow-ResNet stayed at 30-70 % there after 300 steps, with every drift at 100 %."""
