"""What a command says to its user when something went wrong: what is wrong, where, and how to mend it; or why a run ended."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake that the user can mend: an unknown key, a missing file, too few CPUs.

    Commands print the message without a traceback and exit with code 2. If several mistakes are found at once, each is passed
    in ``details`` and printed on a line of its own. Mistakes in this project's code are ``assert``s instead and keep their
    traceback.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  - {detail}" for detail in details)]))


MAX_LISTED = 20
"""If there are more mistakes than this, a message lists only so many of them."""


def list_first(texts: Sequence[str]) -> list[str]:
    """Returns the first 20 texts and, if there are more, a line that says how many; for the ``details`` of a ``UserError``."""
    more = [f"and {len(texts) - MAX_LISTED} more"] if len(texts) > MAX_LISTED else []
    return [*texts[:MAX_LISTED], *more]


def find_nearest_name(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Finds the name that is spelled most like ``word``, or None if none is at least ``cutoff`` (0..1, of difflib) similar."""
    nearest = difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return nearest[0] if nearest else None


def suggest(word: str, names: Iterable[str]) -> str:
    """Returns ``; did you mean NAME?``, for the end of a message on an unknown ``word``, or "" if no name is similar to it."""
    nearest = find_nearest_name(word, names)
    return f"; did you mean {nearest}?" if nearest else ""


class RunFailed(RuntimeError):
    """A run ended and would end in the same way again, or it used up its restarts; the text is the cause.

    Commands print the text and exit with code 1.
    """


class Stopped(Exception):
    """A signal asked a run to stop, and it stopped; the same command continues the run.

    Commands print the text and exit with 128 plus the signal's number, as shells do: 130 for Ctrl-C (SIGINT), 143 for SIGTERM.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 128 plus the signal's number."""
        return 128 + self.number

    @property
    def signal_name(self) -> str:
        """The signal's name as ``kill -l`` lists it, for example SIGTERM."""
        return signal.Signals(self.number).name
