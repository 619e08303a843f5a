"""Estimates what a study will cost from what finished runs took."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.evaluation.protocol import is_of_finished_run
from pipeline.run_folder.contents import read_metrics

ASSUMED_SECONDS = 1.0
"""The seconds per step if no run tells; the message says that this is an assumption."""


@dataclass(frozen=True)
class RunProgress:
    """How many of its steps a run has been trained."""

    step: int
    steps: int
    is_done: bool

    def __str__(self) -> str:
        """Returns a word for the list of trials."""
        if self.is_done:
            return "done"
        return f"at {self.step}/{self.steps}" if self.step else "missing"


def read_progress(config: Config) -> RunProgress:
    """Reads the progress from the run's folder, without opening checkpoints."""
    folder = config.run_folder
    steps = config.train.steps
    path = folder / "evaluation.json"
    if path.is_file():
        summary = json.loads(path.read_text(encoding="utf-8"))
        if is_of_finished_run(summary, config):
            return RunProgress(steps, steps, True)
    reached = max((int(path.name.rpartition("_")[2]) for path in folder.glob("checkpoint_*")), default=0)
    return RunProgress(min(reached, steps), steps, False)


def measure_seconds_per_step(folders: Sequence[Path]) -> tuple[float, int] | None:
    """Returns the median over runs of their median seconds per step, and the number of runs; None if none was logged."""
    medians = []
    for folder in folders:
        lines = [line["seconds/step"] for line in read_metrics(folder) if "seconds/step" in line]
        medians += [statistics.median(lines)] if lines else []
    return (statistics.median(medians), len(medians)) if medians else None


def describe_time_left(configs: Sequence[Config], concurrent: int, beside: Path, known: Sequence[Path]) -> str:
    """Says in a sentence how many hours of training these runs still take, and where the number comes from.

    It is measured on the ``known`` run folders of their study or, if there are none, on those ``beside`` the study.
    """
    left = sum(state.steps - state.step for state in map(read_progress, configs))
    if not left:
        return "nothing is left to train"
    rate, source = measure_seconds_per_step(known), "of this study"
    if rate is None:
        others = [*beside.glob("*/"), *beside.glob("*/*/")]  # runs, and those of other studies
        rate, source = measure_seconds_per_step(others), f"in {beside}, whatever their setting"
    if rate is None:
        seconds, why = ASSUMED_SECONDS, "an assumption: no run here says better"
    else:
        seconds, why = rate[0], f"the median of {rate[1]} run{'s' * (rate[1] > 1)} {source}"
    hours = left * seconds / 3600 / concurrent
    each = f"{concurrent} at once, at {seconds:.3g} s a step ({why}); evaluation not counted"
    return f"{left} steps are left: about {hours:.2g} h, {each}"
