"""Chance that is the same on every machine and library version: orders by SHA-256, shares rounded by hand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from pipeline.errors import UserError


def seeded_order(ids: Sequence[str], seed: int, purpose: str) -> list[int]:
    """A shuffle that is the same on every machine: places of ``ids``, by the hash of (purpose, seed, id).

    It does not depend on the order of ``ids``, and dropping some leaves the order of the others.
    """
    keys = [hashlib.sha256(f"{purpose}\0{seed}\0{text}".encode()).digest() for text in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)


def round_half_up(number: float) -> int:
    """2.5 is 3: Python's own ``round`` makes it 2 and 3.5 4."""
    return int(number + 0.5)


def parse_share(spec: str, option: str) -> float:
    """``"25%"`` as 0.25. Raises UserError naming ``option``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", spec.strip())
    if not match or not 0 < float(match[1]) <= 100:
        raise UserError(f"{option} {spec!r} is not understood; write a share above 0% and up to 100%, for example 10%")
    return float(match[1]) / 100
