"""Reads a study of simulated rounds of labeling: accuracy over the number of labels, for each strategy that chose videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.records.study_record import StudyRecord
from pipeline.analysis.statistics import Estimate, estimate_over_seeds

RANDOM, START = "random", "start"


@dataclass(frozen=True)
class StrategyCurve:
    """The accuracy of one strategy over its rounds, for the S seeds whose rounds are all evaluated up to ``labels``."""

    strategy: str
    labels: tuple[int, ...]
    """[R] number of labels, ascending: of the start, and after each round."""
    seeds: tuple[int, ...]
    accuracy: NDArray[np.float64]
    """[S, R] top-1 of the mean of both students, 0..1."""

    def find_labels_for(self, target: float) -> float | None:
        """Returns the number of labels at which the mean over seeds first reaches ``target``, by linear interpolation between
        rounds; None if it never does."""
        means = self.accuracy.mean(axis=0)
        for index, value in enumerate(means):
            if value >= target:
                if index == 0:
                    return float(self.labels[0])
                share = (target - means[index - 1]) / (value - means[index - 1])
                return float(self.labels[index - 1] + share * (self.labels[index] - self.labels[index - 1]))
        return None


def is_rounds(study: StudyRecord) -> bool:
    """Returns whether the study simulates rounds of labeling."""
    return bool(study.trials) and all({"strategy", "round", "number_of_labels"} <= set(t.params) for t in study.trials)


def read_curves(study: StudyRecord) -> list[StrategyCurve]:
    """Reads the strategies of a study, random first. Of each strategy the rounds are used that every seed has reached."""
    values: dict[tuple[str, int, int], tuple[int, float]] = {}
    for trial in study.trials:
        if trial.state == "complete" and trial.values.get("mean") is not None:
            key = str(trial.params["strategy"]), int(trial.params["run.seed"]), int(trial.params["round"])
            values[key] = int(trial.params["number_of_labels"]), float(trial.values["mean"])
    strategies = sorted({strategy for strategy, *_ in values} - {START}, key=lambda name: (name != RANDOM, name))
    return [curve for name in strategies if (curve := _build_curve(name, values)) is not None]


def _build_curve(strategy: str, values: Mapping[tuple[str, int, int], tuple[int, float]]) -> StrategyCurve | None:
    seeds = sorted({seed for name, seed, _ in values if name == strategy and (START, seed, 0) in values})
    reached = [max(number for name, own, number in values if name == strategy and own == seed) for seed in seeds]
    if not seeds:
        return None
    rows = []
    for seed in seeds:
        rows.append([values[START, seed, 0], *(values[strategy, seed, number] for number in range(1, min(reached) + 1))])
    labels = tuple(count for count, _ in rows[0])
    return StrategyCurve(strategy, labels, tuple(seeds), np.array([[value for _, value in row] for row in rows]))


def compare_with_random(curve: StrategyCurve, curves: Sequence[StrategyCurve]) -> Estimate | None:
    """Estimates how much better than random choice a strategy is: the mean over the rounds after the start, by seed.

    None for random itself, and if random has other rounds or seeds.
    """
    other = next((one for one in curves if one.strategy == RANDOM), None)
    if other is None or other is curve or other.labels != curve.labels or other.seeds != curve.seeds or len(curve.labels) < 2:
        return None
    return estimate_over_seeds(list((curve.accuracy - other.accuracy)[:, 1:].mean(axis=1)))
