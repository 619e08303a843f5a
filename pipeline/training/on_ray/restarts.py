"""Decides after a failure whether to start again from the newest checkpoint, or whether it would only happen again. No Ray."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import RunFailed, UserError

FAILURES = "failures.jsonl"
"""The file of the run folder that has a line for each time that something ended the workers."""
MONITOR = "Ray's memory monitor ended it"
REPEATS = 3
"""After so many failures of one and the same step the run ends."""
COLLATERAL = re.compile(
    r"connection closed by peer|connection reset|broken pipe|connection refused|timed out waiting|socket timeout|"
    r"watchdog caught collective|NCCL communicator was aborted|remote process exited",
    re.IGNORECASE,
)
"""Matches what the other workers raise when one has died."""


class FinalFailure(RuntimeError):
    """Ends the run in whatever worker it is raised: the user must mend it, or it would happen again.

    Returned values would not do: the other workers would wait for one that has returned until their collectives' limit.
    """

    def __init__(self, error: UserError | RunFailed) -> None:
        super().__init__(error)  # which makes it an attribute that travels to the driver; a cause does not
        self.error = error


class StepFailed(RuntimeError):
    """Says in which step and worker an exception was raised; raised from that exception."""

    def __init__(self, step: int, where: str, cause: str) -> None:
        super().__init__(step, where, cause)
        self.step, self.where, self.cause = step, where, cause

    def __str__(self) -> str:
        return f"step {self.step} in {self.where}: {self.cause}"

    @classmethod
    def from_error(cls, step: int, worker: int, host: str, error: Exception) -> StepFailed:
        """Makes one with the first line of ``error``, which itself may not survive the way to the driver.

        ``error`` is its cause, unless it only says that another worker is gone: the traceback of that would mislead readers.
        """
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        failed = cls(step, f"worker {worker} on {host}", f"{type(error).__name__}: {lines[0] if lines else ''}")
        failed.__cause__ = None if COLLATERAL.search(failed.cause) else error
        return failed


@dataclass(frozen=True)
class Failure:
    """How one worker ended."""

    worker: int | None
    """Its rank; None: it happened before all workers ran."""
    cause: str
    """What ended it, in one line."""
    step: int | None
    """The step in which an exception was raised; None for a process that died."""
    final: UserError | RunFailed | None = None
    """What the driver raises instead of starting again; None: it may start again."""

    @property
    def is_collateral(self) -> bool:
        """Whether it only shows that another worker is gone."""
        return COLLATERAL.search(self.cause) is not None

    @property
    def where(self) -> str:
        """Where it happened, as part of a sentence."""
        return "while the workers started" if self.worker is None else f"in worker {self.worker}"

    @classmethod
    def from_error(cls, worker: int | None, error: BaseException) -> Failure:
        """Makes one from what Ray raises for a worker: the exception of its train function, or one of Ray's own."""
        if isinstance(error, UserError | RunFailed):
            error = FinalFailure(error)
        if isinstance(error, FinalFailure):
            return cls(worker, str(error.error), None, error.error)
        if isinstance(error, StepFailed):
            return cls(worker, error.cause, error.step)
        text = str(error)
        if limit := re.search(r"WORKER_HEALTH_CHECK_TIMEOUT_S.*?([\d.]+) seconds", text, re.DOTALL):
            return cls(worker, f"stands still: no answer to Ray for {float(limit[1]):g} s (train.step_timeout_seconds)", None)
        if spent := re.search(r"low on memory\. Memory on the node \(IP: ([^,)]+).*?was (\S+) used / (\S+) limit", text):
            cause = f"{MONITOR}: the node {spent[1]} ran low on memory ({spent[2]} of {spent[3]} used)"
            remedy = "lower data.labeled_per_step or data.blocks_ahead, or put fewer workers on a node"
            return cls(worker, f"{cause}; {remedy}", None)
        if exited := re.search(r"Worker exit detail: (.*)", text):
            return cls(worker, f"the process died: {exited[1].partition(' Some common causes')[0].strip()}", None)
        if silent := re.search(r"is unavailable: (.*?)\. The task may", text, re.DOTALL):
            return cls(worker, f"the process or its node does not answer: {' '.join(silent[1].split())}", None)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return cls(worker, f"{type(error).__name__}: {' | '.join(lines[-3:])}"[:500], None)


def find_root_cause(failures: Sequence[Failure]) -> Failure:
    """Finds the failure that the others follow from: a process that died, else an exception other than a lost connection."""
    return min(
        failures,
        key=lambda failure: (failure.final is None, failure.is_collateral, failure.step is not None, failure.worker or 0),
    )


class Restarts:
    """Counts the failures of one command: those since the last new checkpoint, and those of each step."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._newest = -1
        self._since = 0
        self._steps: Counter[int] = Counter()

    def decide(self, newest_step: int, failures: Sequence[Failure]) -> UserError | RunFailed | None:
        """Returns None to start again, or what to raise because that would be useless.

        ``newest_step`` is the step of the newest checkpoint, 0 if there is none.
        """
        cause = find_root_cause(failures)
        if cause.final is not None:
            return cause.final
        self.total += 1
        self._since = self._since + 1 if newest_step <= self._newest else 1
        self._newest = max(newest_step, self._newest)
        if cause.step is not None and not cause.is_collateral:
            self._steps[cause.step] += 1
            if self._steps[cause.step] >= REPEATS:
                return RunFailed(f"step {cause.step} failed {REPEATS} times, the last time {cause.where}: {cause.cause}")
        if self._since > self.limit:
            return RunFailed(
                f"{self._since} failures without a new checkpoint after step {max(newest_step, 0)} "
                f"(train.max_failures={self.limit}), the last {cause.where}: {cause.cause}"
            )
        return None


def record_failures(path: Path, newest_step: int, failures: Sequence[Failure], ending: Exception | None) -> None:
    """Appends a line to failures.jsonl; ``ending`` is what ends the run, None if it starts again."""
    cause = find_root_cause(failures)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": newest_step,
        "step": cause.step,
        "worker": cause.worker,
        "cause": cause.cause,
        "workers": [failure.worker for failure in failures if failure.worker is not None],
        "stopped": None if ending is None else str(ending),
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
