"""What users see when something is wrong: what they did, where, and the remedy; or why a run ended."""

from __future__ import annotations

import signal
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
    """A run ended and would end so again, or its restarts were used up; the text is the cause. Commands print it and exit
    with code 1."""


class Stopped(Exception):
    """A run was asked to stop by a signal and did. Commands print the text and exit with 128 + the signal's number, as a
    shell tells it: 130 for Ctrl-C (SIGINT), 143 for SIGTERM. The same command continues the run."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number."""
        return 128 + self.number

    @property
    def signal_name(self) -> str:
        """As in ``kill -l``, for example SIGTERM."""
        return signal.Signals(self.number).name
