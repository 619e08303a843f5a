"""Estimates what a study will cost from what finished runs took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from pipeline.analysis.records.run_progress import read_saved_progress
from pipeline.config import Config
from pipeline.run_folder.contents import read_metrics

ASSUMED_SECONDS = 1.0
"""The seconds per step if no run tells; the message says that this is an assumption."""


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
    left = sum(state.steps - state.step for state in map(read_saved_progress, configs))
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
