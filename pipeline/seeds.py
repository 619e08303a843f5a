"""Counter-based randomness: a number is a hash of what it is for, so nothing depends on order, worker or batch.

``splitmix64`` (Steele, Lea & Flood 2014) is exact integer arithmetic: the same on every machine and with every numpy version.
"""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

UInts: TypeAlias = npt.NDArray[np.uint64]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


def mix(value: UInts) -> UInts:
    """Applies splitmix64's output function, a bijection on 64 bits that scatters neighboring values."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash_to_uint64(*parts: npt.ArrayLike | str) -> UInts:
    """Hashes integers (broadcast against each other) and words into uint64; different tuples give independent values."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            number = zlib.crc32(part.encode()) if isinstance(part, str) else np.asarray(part)
            state = mix(state + np.uint64(0x9E3779B97F4A7C15) + mix(np.asarray(number).astype(np.uint64)))
    return state


def draw_uniform(*parts: npt.ArrayLike | str) -> Floats:
    """Hashes integers and words into [0, 1) with 53 bits."""
    return np.asarray((hash_to_uint64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permute(index: npt.ArrayLike, size: int, *key: npt.ArrayLike | str) -> Ints:
    """Returns the position of ``index`` (0..size-1) in a keyed permutation of 0..size-1, without a table.

    It is a Feistel network on the next power of four, applied until the result is inside (Black & Rogaway 2002): less than
    four times on average, so 10 M videos need no memory and any row is found at once. ``key`` parts may be arrays of the
    index's shape (an epoch for each).
    """
    assert size > 0
    index = np.asarray(index, dtype=np.int64)
    assert index.size == 0 or (index.min() >= 0 and index.max() < size), "index outside the permutation"
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = np.broadcast_to(hash_to_uint64("permute", *key), index.shape).reshape(-1)
    position = index.astype(np.uint64).reshape(-1)
    outside = np.ones(position.shape, dtype=bool)
    while outside.any():
        position[outside] = _feistel(position[outside], keys[outside], half)
        outside = position >= np.uint64(size)
    return position.astype(np.int64).reshape(index.shape)


def _feistel(value: UInts, keys: UInts, half: np.uint64, rounds: int = 8) -> UInts:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(rounds):
        left, right = right, left ^ (hash_to_uint64(keys, right, number) & mask)
    return (left << half) | right
