"""What a study will cost, from what finished runs took."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.run_folder.contents import read_metrics

ASSUMED_SECONDS = 1.0
"""A step, where no run says better: a guess, said to be one."""


@dataclass(frozen=True)
class State:
    """How far a run is."""

    step: int
    steps: int
    done: bool

    def __str__(self) -> str:
        """For the list of trials."""
        if self.done:
            return "done"
        return f"at {self.step}/{self.steps}" if self.step else "missing"


def state_of(config: Config) -> State:
    """From the run's folder, without opening checkpoints."""
    folder = config.run_folder
    steps = config.train.steps
    protocol = config.evaluation
    wanted = {"step": steps, "clips": protocol.clips, "crops": protocol.crops, "split": protocol.split}
    path = folder / "evaluation.json"
    if path.is_file():
        summary = json.loads(path.read_text(encoding="utf-8"))
        if all(summary.get(key) == value for key, value in wanted.items()):
            return State(steps, steps, True)
    reached = max((int(path.name.rpartition("_")[2]) for path in folder.glob("checkpoint_*")), default=0)
    return State(min(reached, steps), steps, False)


def seconds_per_step(folders: Sequence[Path]) -> tuple[float, int] | None:
    """Median over runs of their median seconds a step, and the number of runs; None without any."""
    medians = []
    for folder in folders:
        lines = [line["seconds/step"] for line in read_metrics(folder) if "seconds/step" in line]
        medians += [statistics.median(lines)] if lines else []
    return (statistics.median(medians), len(medians)) if medians else None


def estimate(configs: Sequence[Config], concurrent: int, beside: Path, known: Sequence[Path]) -> str:
    """A sentence: hours of training that these runs still take, and where the number comes from: the ``known`` run folders of
    their study, else those ``beside`` it."""
    left = sum(state.steps - state.step for state in map(state_of, configs))
    if not left:
        return "nothing is left to train"
    rate, source = seconds_per_step(known), "of this study"
    if rate is None:
        others = [*beside.glob("*/"), *beside.glob("*/*/")]  # runs, and those of other studies
        rate, source = seconds_per_step(others), f"in {beside}, whatever their setting"
    if rate is None:
        seconds, why = ASSUMED_SECONDS, "an assumption: no run here says better"
    else:
        seconds, why = rate[0], f"the median of {rate[1]} run{'s' * (rate[1] > 1)} {source}"
    hours = left * seconds / 3600 / concurrent
    each = f"{concurrent} at once, at {seconds:.3g} s a step ({why}); evaluation not counted"
    return f"{left} steps are left: about {hours:.2g} h, {each}"
