"""Accuracy over the number of labels: one curve for each setting and, where people added labels, for their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.analysis.comparison import name_settings, read_setting
from pipeline.analysis.records.run_record import RunRecord
from pipeline.run_folder.contents import PREDICTORS

ANSWERED = " + "
"""What is between the choice of the first labels and the file of answers, in the name of a choice by ``jobs.label --add``."""
LABELS = "labels"
"""The key of a setting that says which labels were chosen."""


@dataclass(frozen=True)
class LabelCurve:
    """The runs of one setting with different numbers of labels."""

    name: str
    """The setting, and the files of answers if another curve has the same setting."""
    top1: Mapping[str, Mapping[int, Mapping[int, float]]]
    """Top-1 in percent by predictor, number of labels (ascending) and seed."""

    @property
    def counts(self) -> list[int]:
        """The numbers of labels, ascending."""
        return list(self.top1[PREDICTORS[0]])


def build_label_curves(runs: Sequence[RunRecord]) -> list[LabelCurve]:
    """Builds the curves of all settings that were evaluated with two numbers of labels or more.

    Labels that people added are curves of their own, one for each last file of answers; they begin with the labels that the
    first answers were added to.
    """
    evaluated = [run for run in runs if run.get_top1("mean") is not None and run.labels.get("count")]
    settings: dict[str, list[RunRecord]] = {}
    for run in evaluated:
        setting = sorted((key, value) for key, value in read_setting(run).items() if key != LABELS)
        settings.setdefault(repr(setting), []).append(run)
    names = name_settings([group[0] for group in settings.values()], ignored=LABELS)
    curves = []
    for name, group in zip(names, settings.values(), strict=True):
        found = {how: {p: _gather(part, p) for p in PREDICTORS} for how, part in _divide_by_choice(group).items()}
        found = {how: top1 for how, top1 in found.items() if len(top1[PREDICTORS[0]]) > 1}
        curves += [LabelCurve(f"{name}, {how}" if len(found) > 1 else name, top1) for how, top1 in found.items()]
    return curves


def _divide_by_choice(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Divides runs of one setting by how their labels came about: without answers, or by which files of answers.

    The runs of a file of answers are those of the labels that it was added to, and so on back to the first ones.
    """
    choices = {_read_choice(run) for run in runs}
    answered = sorted(choice for choice in choices if ANSWERED in choice)
    last = [choice for choice in answered if not any(other.startswith(choice + ANSWERED) for other in answered)]
    parts = {"no answers": [run for run in runs if ANSWERED not in _read_choice(run)]}
    for choice in last:
        files = choice.partition(ANSWERED)[2]
        parts[files] = [run for run in runs if (choice + ANSWERED).startswith(_read_choice(run) + ANSWERED)]
    return parts


def _read_choice(run: RunRecord) -> str:
    return str(run.labels.get("spec") or "")


def _gather(runs: Sequence[RunRecord], predictor: str) -> dict[int, dict[int, float]]:
    """Collects top-1 by number of labels and seed; of several runs with the same, the first."""
    found: dict[int, dict[int, float]] = {}
    for run in sorted(runs, key=lambda run: (int(run.labels["count"]), run.seed or 0)):
        value = run.get_top1(predictor)
        if value is not None:
            found.setdefault(int(run.labels["count"]), {}).setdefault(run.seed or 0, value)
    return found
