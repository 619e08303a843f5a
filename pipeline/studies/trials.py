"""A trial of a study or a search: an ordinary run that is trained from stop to stop, which are steps at which it is scored.

Between two stops nothing of the run exists but its folder, so a trial can be ended there at no cost. (Tune's own schedulers
end a Ray Train run from outside, and its placement group stays behind if the cluster has no dashboard.) A ``TrialSource``
decides what to run next and whether a trial continues. It lives in the driver and saves what it must remember outside of Tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.config import Config
from pipeline.evaluation.protocol import collect_protocol, describe_protocol
from pipeline.run_folder.contents import PREDICTORS

ORPHAN_SECONDS = 20.0
"""How many seconds a trial waits until the trial of a killed driver has left its run folder."""


@dataclass(frozen=True)
class Job:
    """A run, and the steps at which it stops to be scored."""

    config: Config
    """The configuration of the run, with absolute paths."""
    stops: tuple[int, ...]
    """Ascending steps; the last one is the end of the run, or as far as it is to be trained."""

    @property
    def name(self) -> str:
        """The name of the run, which is unique in its study."""
        return self.config.run.name


class TrialSource(Protocol):
    """Gives trials to run and is told their results. All calls come from one thread of the driver."""

    def next_job(self) -> Job | None:
        """Returns the next trial to start, or None if there are no more."""

    def report_scores(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """Takes the scores of a trial at a stop, possibly for the second time. Returns whether the trial continues."""

    def report_end(self, job: Job, error: str | None) -> None:
        """Is told that a trial came to its last stop, was not continued, or failed (``error``).

        It is not called for trials that the end of the budget cut off.
        """


@dataclass(frozen=True)
class Budget:
    """How many trials run at once, and for how long."""

    concurrent: int = 1
    hours: float | None = None
    """After so many hours, running trials are cut off; None for no limit. The same command continues them from their newest
    checkpoints. A run that trains in this process writes a checkpoint first."""

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds; None for no limit."""
        return None if self.hours is None else 3600 * self.hours


def print_scores(job: Job, step: int, scores: Mapping[str, float]) -> None:
    """Prints how good a trial is at one of its stops."""
    accuracies = "  ".join(f"{predictor} {scores[predictor]:.1%}" for predictor in PREDICTORS)
    protocol = describe_protocol({"protocol": collect_protocol(job.config)})
    where = f"{job.name} at step {step}/{job.config.train.steps}"
    print(f"{where}: {job.config.evaluation.split} top-1 {accuracies} ({protocol})", flush=True)
