"""A trial of a study or a search: an ordinary run that is driven from stop to stop, steps at which it is scored.

Between two stops nothing of it is alive but its folder, so a trial can be ended there at no cost: Tune's own schedulers end
a Ray Train run from outside, and its placement group stays behind when the cluster has no dashboard. What to run next, and
whether a trial goes on, is asked of a ``Source``, which lives in the driver and keeps what it must remember outside of Tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.config import Config

ORPHAN_SECONDS = 20.0
"""How long a trial waits for one of a killed driver to leave its run folder."""


@dataclass(frozen=True)
class Job:
    """A run and where to stop on its way."""

    config: Config
    """With absolute paths."""
    stops: tuple[int, ...]
    """Steps, ascending; the last one is the run's end, or as far as it is to go."""

    @property
    def name(self) -> str:
        """The run's name, unique in its study."""
        return self.config.run.name


class Source(Protocol):
    """Where trials come from and what becomes of them. Called from one thread of the driver."""

    def next(self) -> Job | None:
        """The next trial to start; None when there is none any more."""

    def scored(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """Take note of a trial's scores at a stop, repeated ones too; returns whether it goes on."""

    def ended(self, job: Job, error: str | None) -> None:
        """It came to its last stop, was told not to go on, or failed. Not called for what the budget cut off."""


@dataclass(frozen=True)
class Budget:
    """How much is used at once, and for how long."""

    concurrent: int = 1
    hours: float | None = None
    """Runs that are under way then are cut off; the same command continues them from their newest checkpoints. One that
    trains in this process makes a checkpoint first."""

    @property
    def seconds(self) -> float | None:
        """The limit for Tune."""
        return None if self.hours is None else 3600 * self.hours


def print_scores(job: Job, step: int, scores: Mapping[str, float]) -> None:
    """Show on the terminal how good a trial is at one of its stops."""
    accuracies = "  ".join(f"{view} {scores[view]:.1%}" for view in ("primary", "auxiliary", "mean"))
    print(f"{job.name} at step {step}/{job.config.train.steps}: {job.config.evaluation.split} top-1 {accuracies}", flush=True)
