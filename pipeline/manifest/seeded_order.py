"""Random choices that are the same on every machine and with every library version: orders by SHA-256 and rounded shares."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from pipeline.errors import UserError


def order_by_hash(ids: Sequence[str], seed: int, purpose: str) -> list[int]:
    """Shuffles ``ids`` in the same way on every machine; returns their indices, ordered by the hash of (purpose, seed, id).

    The result does not depend on the order of ``ids``, and leaving some out does not change the order of the others.
    """
    keys = [hashlib.sha256(f"{purpose}\0{seed}\0{text}".encode()).digest() for text in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)


def round_half_up(number: float) -> int:
    """Rounds 2.5 to 3 and 3.5 to 4, where Python's own ``round`` returns 2 and 4."""
    return int(number + 0.5)


def parse_share(spec: str, option: str) -> float:
    """Parses a percentage: ``"25%"`` becomes 0.25. Raises UserError that names the command-line ``option``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", spec.strip())
    if not match or not 0 < float(match[1]) <= 100:
        raise UserError(f"{option} {spec!r} is not understood; write a share above 0% and up to 100%, for example 10%")
    return float(match[1]) / 100
