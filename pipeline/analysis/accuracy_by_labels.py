"""Accuracy over the number of labels: one curve for each method and for each way in which its labels were chosen."""

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
    """The setting, and how its labels were chosen if another curve has the same setting."""
    top1: Mapping[str, Mapping[int, Mapping[int, float]]]
    """Top-1 in percent by predictor, number of labels (ascending) and seed."""

    @property
    def counts(self) -> list[int]:
        """The numbers of labels, ascending."""
        return list(self.top1[PREDICTORS[0]])


def build_label_curves(runs: Sequence[RunRecord]) -> list[LabelCurve]:
    """Builds the curves of all settings that were evaluated with two numbers of labels or more.

    Labels that people added belong to another curve than labels drawn at random; it begins with the labels that they were
    added to.
    """
    evaluated = [run for run in runs if run.get_top1("mean") is not None and run.labels.get("count")]
    settings: dict[str, list[RunRecord]] = {}
    for run in evaluated:
        setting = sorted((key, value) for key, value in read_setting(run).items() if key != LABELS)
        settings.setdefault(repr(setting), []).append(run)
    names = name_settings([group[0] for group in settings.values()], ignored=LABELS)
    curves = []
    for name, group in zip(names, settings.values(), strict=True):
        drawn = [run for run in group if not _is_answered(run)]
        answered = [run for run in group if _is_answered(run)]
        begun = {_read_choice(run).split(ANSWERED)[0] for run in answered}
        both = len({run.labels["count"] for run in drawn}) > 1 and bool(answered)
        parts = {"drawn at random": drawn, "chosen": [run for run in drawn if _read_choice(run) in begun] + answered}
        for how, part in parts.items():
            curve = LabelCurve(f"{name}, {how}" if both else name, {p: _gather(part, p) for p in PREDICTORS})
            if (how == "drawn at random" or answered) and len(curve.counts) > 1:
                curves.append(curve)
    return curves


def _read_choice(run: RunRecord) -> str:
    return str(run.labels.get("spec") or "")


def _is_answered(run: RunRecord) -> bool:
    return ANSWERED in _read_choice(run)


def _gather(runs: Sequence[RunRecord], predictor: str) -> dict[int, dict[int, float]]:
    """Collects top-1 by number of labels and seed; of several runs with the same, the first."""
    found: dict[int, dict[int, float]] = {}
    for run in sorted(runs, key=lambda run: (int(run.labels["count"]), run.seed or 0)):
        value = run.get_top1(predictor)
        if value is not None:
            found.setdefault(int(run.labels["count"]), {}).setdefault(run.seed or 0, value)
    return found
