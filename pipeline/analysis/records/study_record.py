"""What the folders of studies say, whoever reads them: their trials and objectives, and the runs that a report is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.analysis.records.run_record import RunRecord
from pipeline.run_folder.contents import PREDICTORS

SEARCH = "search"


@dataclass(frozen=True)
class Objective:
    """A quantity that a search optimizes."""

    name: str
    """A key of a trial's values: one of ``PREDICTORS``, whose top-1 is a share in 0..1, ``seconds``, or another name."""
    maximize: bool = True

    @property
    def label(self) -> str:
        """The name with the unit in which readers see the value."""
        return f"{self.name} top-1, %" if self.name in PREDICTORS else {"seconds": "training, s"}.get(self.name, self.name)

    def convert_to_shown_unit(self, value: float) -> float:
        """Converts a value to the unit of ``label``."""
        return 100 * value if self.name in PREDICTORS else value


@dataclass(frozen=True)
class LineagePart:
    """The steps that a member of a population was trained with one choice of knobs."""

    first: int
    last: int | None
    """The last step; None for the end of the run."""
    params: Mapping[str, Any]


@dataclass(frozen=True)
class TrialRecord:
    """What a study's files say about one trial: a run of an ablation or a search, or a member of a population.

    A member of a population is several runs, one after the other. A trial that is yet to be run is
    ``pipeline.studies.ablation.Trial``.
    """

    number: int
    state: str
    """``waiting``, ``running``, ``complete``, ``pruned`` or ``failed``."""
    params: Mapping[str, Any]
    """What the trial changes: values by dotted configuration key."""
    values: Mapping[str, float]
    """The value of each objective; for a trial that was stopped early, its value at that step."""
    seconds: float | None
    folder: Path | None
    message: str = ""
    lineage: tuple[LineagePart, ...] = ()
    cell: str = ""
    """The name of an ablation's cell, which is that of its run folders without the seed."""


@dataclass(frozen=True)
class StudyRecord:
    """What a folder of runs that belong together says about them. Fields that no file tells are empty.

    A study that is yet to be run is read by ``pipeline.studies.study_file``.
    """

    folder: Path
    name: str
    kind: str
    """``ablation``, ``search``, or ``runs`` for a folder that only holds runs."""
    question: str = ""
    command: str = ""
    objectives: tuple[Objective, ...] = (Objective("mean"),)
    baseline: Mapping[str, Any] | None = None
    """The configuration keys and values of the setting that the others are compared with."""
    space: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    """The number of optimizer steps of a run of a search; 0 if unknown."""
    trials: tuple[TrialRecord, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether the trials are samples of a search space rather than settings to be compared."""
        return self.kind == SEARCH

    @property
    def has_named_cells(self) -> bool:
        """Whether the cells change different keys, so that their names say more than the values of their keys."""
        return not self.is_search and len({frozenset(trial.params) for trial in self.trials}) > 1

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of trials by state."""
        return Counter(trial.state for trial in self.trials)


@dataclass(frozen=True)
class ReportInput:
    """The runs that a report is about, each once and in order, and the studies that some of them belong to."""

    runs: tuple[RunRecord, ...]
    studies: tuple[StudyRecord, ...]

    def find_study(self, run: RunRecord) -> StudyRecord | None:
        """Returns the study whose folder holds the run, or None."""
        return next((study for study in self.studies if run.folder.is_relative_to(study.folder)), None)

    def list_runs(self, study: StudyRecord) -> list[RunRecord]:
        """Lists the runs that a study's folder holds."""
        return [run for run in self.runs if self.find_study(run) is study]
