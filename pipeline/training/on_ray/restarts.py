"""After a failure: again from the newest checkpoint, or not, because it would only happen again. No Ray in here."""

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
"""What ended a run's workers, a line for each time; of the run folder."""
MONITOR = "Ray's memory monitor ended it"
REPEATS = 3
"""Failures of one and the same step that end the run."""
COLLATERAL = re.compile(
    r"connection closed by peer|connection reset|broken pipe|connection refused|timed out waiting|socket timeout|"
    r"watchdog caught collective|NCCL communicator was aborted|remote process exited",
    re.IGNORECASE,
)
"""What the other workers say when one has died."""


class Final(RuntimeError):
    """Ends the run wherever it is raised: what the user must mend, or what would happen again.

    Returned values would not do: the other workers would wait for one that has returned until their collectives' limit.
    """

    def __init__(self, error: UserError | RunFailed) -> None:
        super().__init__(error)  # which makes it an attribute that travels to the driver; a cause does not
        self.error = error


class StepFailed(RuntimeError):
    """An exception in a worker's step; raised from it."""

    def __init__(self, step: int, where: str, cause: str) -> None:
        super().__init__(step, where, cause)
        self.step, self.where, self.cause = step, where, cause

    def __str__(self) -> str:
        return f"step {self.step} in {self.where}: {self.cause}"

    @classmethod
    def at(cls, step: int, worker: int, host: str, error: Exception) -> StepFailed:
        """With the first line of ``error``, which itself need not survive the way to the driver."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return cls(step, f"worker {worker} on {host}", f"{type(error).__name__}: {lines[0] if lines else ''}")


@dataclass(frozen=True)
class Failure:
    """How one worker ended."""

    worker: int | None
    """None: before all workers ran."""
    cause: str
    """One line."""
    step: int | None
    """Where an exception was raised; None for a process that died."""
    final: UserError | RunFailed | None = None
    """What to raise in the driver, instead of starting again."""

    @property
    def collateral(self) -> bool:
        """Whether it only says that another worker is gone."""
        return COLLATERAL.search(self.cause) is not None

    @property
    def where(self) -> str:
        """As part of a sentence."""
        return "while the workers started" if self.worker is None else f"in worker {self.worker}"

    @classmethod
    def of(cls, worker: int | None, error: BaseException) -> Failure:
        """From what Ray says of a worker: the exception of its train function, or one of Ray's own."""
        if isinstance(error, UserError | RunFailed):
            error = Final(error)
        if isinstance(error, Final):
            return cls(worker, str(error.error), None, error.error)
        if isinstance(error, StepFailed):
            return cls(worker, error.cause, error.step)
        text = str(error)
        if limit := re.search(r"WORKER_HEALTH_CHECK_TIMEOUT_S.*?([\d.]+) seconds", text, re.DOTALL):
            return cls(worker, f"stands still: no answer to Ray for {float(limit[1]):g} s (train.step_timeout_seconds)", None)
        if spent := re.search(r"low on memory\. Memory on the node \(IP: ([^,)]+).*?was (\S+) used / (\S+) limit", text):
            told = f"{MONITOR}: the node {spent[1]} ran low on memory ({spent[2]} of {spent[3]} used)"
            remedy = "lower data.labeled_per_step or data.blocks_ahead, or put fewer workers on a node"
            return cls(worker, f"{told}; {remedy}", None)
        if exited := re.search(r"Worker exit detail: (.*)", text):
            return cls(worker, f"the process died: {exited[1].partition(' Some common causes')[0].strip()}", None)
        if silent := re.search(r"is unavailable: (.*?)\. The task may", text, re.DOTALL):
            return cls(worker, f"the process or its node does not answer: {' '.join(silent[1].split())}", None)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return cls(worker, f"{type(error).__name__}: {' | '.join(lines[-3:])}"[:500], None)


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The one that the others follow from: a process that died, else an exception that is not about a lost connection."""
    return min(
        failures, key=lambda failure: (failure.final is None, failure.collateral, failure.step is not None, failure.worker or 0)
    )


class Restarts:
    """Counts the failures of one command: those since the last new checkpoint, and those of each step."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._newest = -1
        self._since = 0
        self._steps: Counter[int] = Counter()

    def verdict(self, newest_step: int, failures: Sequence[Failure]) -> UserError | RunFailed | None:
        """None: start again. Otherwise why that would be useless. ``newest_step`` is the newest checkpoint's, 0 for none."""
        cause = root_cause(failures)
        if cause.final is not None:
            return cause.final
        self.total += 1
        self._since = self._since + 1 if newest_step <= self._newest else 1
        self._newest = max(newest_step, self._newest)
        if cause.step is not None and not cause.collateral:
            self._steps[cause.step] += 1
            if self._steps[cause.step] >= REPEATS:
                return RunFailed(f"step {cause.step} failed {REPEATS} times, the last time {cause.where}: {cause.cause}")
        if self._since > self.limit:
            return RunFailed(
                f"{self._since} failures without a new checkpoint after step {max(newest_step, 0)} "
                f"(train.max_failures={self.limit}), the last {cause.where}: {cause.cause}"
            )
        return None


def record(path: Path, newest_step: int, failures: Sequence[Failure], verdict: Exception | None) -> None:
    """Add a line to failures.jsonl."""
    cause = root_cause(failures)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": newest_step,
        "step": cause.step,
        "worker": cause.worker,
        "cause": cause.cause,
        "workers": [failure.worker for failure in failures if failure.worker is not None],
        "stopped": None if verdict is None else str(verdict),
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
