"""Signatures of failure: rules on the lines of metrics.jsonl that find the known ways in which this method goes wrong.

The first three come from the paper's summary; the others were seen to ruin runs. A rule that holds in every line for
``monitors.patience_steps`` is reported once, with the knobs to try, and again if it comes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import MonitorSection

Line = Mapping[str, Any]

KNOBS = {
    "wrong_labels": "raise method.confidence_threshold or method.supervised_steps, lower method.pseudo_label.weight, or label "
                    "more videos",
    "no_labels": "lower method.confidence_threshold (or method.labels.primary_threshold and auxiliary_threshold), try "
                 "method.labels.thresholds=freematch, or train longer",
    "contrast_dominates": "lower method.contrast.weight, raise method.contrast.temperature, or lengthen method.contrast.ramp",
    "not_aligning": "bring primary.clip.fps and auxiliary.clip.fps closer (clip.frames, where clips are segments), raise "
                    "method.contrast.weight, or use method.contrast.features=projection",
    "one_class": "set method.labels.distribution_alignment=uniform, raise method.confidence_threshold or "
                 "method.supervised_steps",
    "diverged": "lower the student's optimizer.lr, set its optimizer.clip_gradient_norm, or lengthen train.warmup_steps",
}  # fmt: skip
"""What to try, by rule; try one knob at a time."""


# Limits of the rules. Only the first is the paper's; all others are choices that no data set here has asked to change.
LEAST_LABEL_ACCURACY = 0.6
"""Accuracy of kept labels below which labels harm more than they help (the paper's summary: 60 %, wanted over 70 %)."""
LEAST_MASK_RATE = 0.01
"""Share of labels kept below which the unlabeled videos teach nothing."""
LARGEST_CONTRAST_SHARE = 0.5
"""The contrast's share of the gradient at a student's outputs above which it dominates: the summary says only that a beta too
high makes training unstable."""
LEAST_ALIGNMENT = 0.02
"""Cosine of the students' features of the same video, less that of different videos, below which they do not align, as
happens when their frame rates are too far apart."""
LARGEST_CLASS_SHARE = 0.6
"""Share of one class among kept labels above which they have collapsed; never less than three times its even share."""
LARGEST_LOSS = 1.5
"""Supervised loss, as a multiple of that of guessing, ln K, above which a student has diverged."""


@dataclass(frozen=True)
class FailureSignature:
    """A rule that held for ``monitors.patience_steps`` or longer."""

    rule: str
    subject: str
    """A direction of pseudo-labels (``primary_to_auxiliary``) or a student; empty for both students."""
    since: int
    """The step of the first line in which it held."""
    until: int
    """The step of the last line in which it held."""
    evidence: str
    """What the last line showed, in words."""

    @property
    def name(self) -> str:
        """The rule and its subject, as ``rule/subject``."""
        return f"{self.rule}/{self.subject}" if self.subject else self.rule

    def __str__(self) -> str:
        return f"{self.evidence}, in every line since step {self.since}; try: {KNOBS[self.rule]}"


class SignatureMonitor:
    """Applies the rules to the lines of a run, one line after the other."""

    def __init__(self, limits: MonitorSection, num_classes: int) -> None:
        self.limits, self.num_classes = limits, num_classes
        self._since: dict[tuple[str, str], int] = {}
        self._reported: set[tuple[str, str]] = set()
        self.present: list[FailureSignature] = []
        """The rules that hold in the newest line and have held for long enough."""

    def update(self, line: Line) -> list[FailureSignature]:
        """Takes in the next line; returns the findings that are new with it."""
        holding = dict(self._find_holding(line))
        step = int(line["step"])
        self._since = {key: self._since.get(key, step) for key in holding}
        self._reported &= set(holding)
        self.present = [
            FailureSignature(*key, since, step, holding[key])
            for key, since in self._since.items()
            if step - since >= self.limits.patience_steps
        ]
        new = [finding for finding in self.present if (finding.rule, finding.subject) not in self._reported]
        self._reported |= {(finding.rule, finding.subject) for finding in new}
        return new

    def _find_holding(self, line: Line) -> Iterator[tuple[tuple[str, str], str]]:
        """Yields (rule, subject) and what the line shows, for every rule that holds in it."""
        for direction, rate in _list_values(line, "mask_rate"):
            if rate < LEAST_MASK_RATE:
                yield ("no_labels", direction), f"{_name_direction(direction)}: {rate:.1%} of labels are kept"
        for direction, accuracy in _list_values(line, "pseudo_label_accuracy"):
            if accuracy < LEAST_LABEL_ACCURACY:
                yield ("wrong_labels", direction), f"{_name_direction(direction)}: {accuracy:.0%} of the kept labels are right"
        for direction, share in _list_values(line, "largest_class"):
            if share > max(LARGEST_CLASS_SHARE, min(1.0, 3 / self.num_classes)):
                yield ("one_class", direction), f"{_name_direction(direction)}: {share:.0%} of the kept labels are of one class"
        for student, share in _list_values(line, "gradient_share/contrast"):
            if share > LARGEST_CONTRAST_SHARE:
                yield ("contrast_dominates", student), f"{student}: the contrast makes {share:.0%} of the gradient"
        for student, loss in _list_values(line, "supervised_loss"):
            if not loss <= LARGEST_LOSS * math.log(self.num_classes):  # nan too
                yield ("diverged", student), f"{student}: its supervised loss is {loss:.3g}, more than that of guessing"
        yield from self._find_misalignment(line)

    def _find_misalignment(self, line: Line) -> Iterator[tuple[tuple[str, str], str]]:
        same, different = line.get("alignment/same"), line.get("alignment/different")
        if same is not None and different is not None and same - different < LEAST_ALIGNMENT:
            cosines = f"cosines {same:.2f} and {different:.2f}"
            yield ("not_aligning", ""), f"the students' features of one video are as far apart as those of two ({cosines})"


def find_signatures(lines: Iterable[Line], limits: MonitorSection, num_classes: int) -> list[FailureSignature]:
    """Finds everything that the rules find in a run's lines, each with the last line in which it held; for reports."""
    monitor, findings = SignatureMonitor(limits, num_classes), dict[tuple[str, str, int], FailureSignature]()
    for line in lines:
        monitor.update(line)
        findings |= {(finding.rule, finding.subject, finding.since): finding for finding in monitor.present}
    return list(findings.values())


def _list_values(line: Line, head: str) -> list[tuple[str, float]]:
    """Lists (student or direction, value) of the metrics ``head/...`` that have a value."""
    return [
        (name[len(head) + 1 :], value)
        for name, value in line.items()
        if name.startswith(f"{head}/") and value is not None and "/" not in name[len(head) + 1 :]
    ]


def _name_direction(direction: str) -> str:
    return "labels of the {} for the {}".format(*direction.split("_to_"))
