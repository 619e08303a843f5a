"""The one exception that users see: what they did, where, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Something the user can mend: a bad key, a missing file, too few CPUs.

    Commands print its text without a traceback and exit with code 2. Several mistakes found at
    once are given as ``details`` and printed a line each. Mistakes of ours are ``assert``s and keep their traceback.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  - {detail}" for detail in details)]))


SHOWN = 20
"""How many of many mistakes a message lists."""


def first_few(texts: Sequence[str]) -> list[str]:
    """The first 20 and how many more there are, as ``details`` of a UserError."""
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return [*texts[:SHOWN], *more]


class RunFailed(RuntimeError):
    """A run ended after its restarts were used up; the text is the cause. Commands print it and exit with code 1."""
