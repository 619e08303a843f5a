"""How synthetic objects move in each class. Initial positions, angles and sizes are drawn in the same way for all classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass
class Trajectory:
    """The poses of one object in T frames; every field but ``side`` is [T]."""

    side: float
    """Short side of the frame in pixels."""
    x: Floats
    """Horizontal position of the center in pixels."""
    y: Floats
    """Vertical position of the center in pixels, downward."""
    angle: Floats
    """Clockwise rotation in radians."""
    size: Floats
    """Natural logarithm of the factor by which the radius is scaled."""
    swapped: NDArray[np.bool_]
    """Whether the object's two colors are exchanged."""
    age: Floats
    """Seconds since the present life began."""
    life: Floats
    """Length of the present life in seconds."""
    speed: Floats
    """Short sides of the frame per second, turns per second, or e-folds of size per second."""


def _drift(trajectory: Trajectory, dx: float, dy: float) -> None:
    distance = trajectory.speed * trajectory.side * (trajectory.age - trajectory.life / 2)
    trajectory.x += dx * distance
    trajectory.y += dy * distance


def _rotate(trajectory: Trajectory, sign: int) -> None:
    trajectory.angle += sign * 2 * math.pi * trajectory.speed * trajectory.age


def _grow(trajectory: Trajectory, sign: int) -> None:
    trajectory.size = sign * compute_log_growth(trajectory.speed, trajectory.age - trajectory.life / 2)


def _bounce(trajectory: Trajectory) -> None:
    turns = trajectory.speed * 2 * trajectory.age + trajectory.angle  # the angle is uniform: a phase like any other
    trajectory.y -= 0.5 * trajectory.side * np.abs(np.sin(math.pi * turns))


def _shake(trajectory: Trajectory) -> None:
    trajectory.x += 0.12 * trajectory.side * np.sin(2 * math.pi * 4 * trajectory.speed * trajectory.age + trajectory.angle)


def _orbit(trajectory: Trajectory) -> None:
    phase = 2 * math.pi * 1.5 * trajectory.speed * trajectory.age + trajectory.angle
    trajectory.x += 0.25 * trajectory.side * np.cos(phase)
    trajectory.y += 0.25 * trajectory.side * np.sin(phase)


def _blink(trajectory: Trajectory) -> None:
    trajectory.swapped ^= np.sin(2 * math.pi * 4 * trajectory.speed * trajectory.age + trajectory.angle) > 0


def compute_log_growth(speed: Floats, seconds: Floats) -> Floats:
    """Computes the natural logarithm of the factor by which an object grows in a time."""
    return np.asarray(speed * seconds, np.float32)


DIAGONAL = math.sqrt(0.5)
MOTIONS: dict[str, Callable[[Trajectory], None]] = {
    "drift_left": lambda trajectory: _drift(trajectory, -1, 0),
    "drift_right": lambda trajectory: _drift(trajectory, 1, 0),
    "drift_up": lambda trajectory: _drift(trajectory, 0, -1),
    "drift_down": lambda trajectory: _drift(trajectory, 0, 1),
    "drift_up_left": lambda trajectory: _drift(trajectory, -DIAGONAL, -DIAGONAL),
    "drift_up_right": lambda trajectory: _drift(trajectory, DIAGONAL, -DIAGONAL),
    "drift_down_left": lambda trajectory: _drift(trajectory, -DIAGONAL, DIAGONAL),
    "drift_down_right": lambda trajectory: _drift(trajectory, DIAGONAL, DIAGONAL),
    "rotate_clockwise": lambda trajectory: _rotate(trajectory, 1),  # y points down, so a growing angle turns clockwise
    "rotate_counterclockwise": lambda trajectory: _rotate(trajectory, -1),
    "grow": lambda trajectory: _grow(trajectory, 1),
    "shrink": lambda trajectory: _grow(trajectory, -1),
    "bounce": _bounce,
    "shake": _shake,
    "orbit": _orbit,
    "blink": _blink,
}
"""The motion of each class. Both small students learn the first eight, the default, from few labels. They learn rotation and
growth only from many: with all 240 labels a Slow-ResNet had 30-70 % there after 300 steps, and 100 % on every drift."""
