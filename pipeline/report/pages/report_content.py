"""What a report is about: the runs that were read, grouped into settings, and the comparison of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.analysis.comparison import (
    Difference,
    Group,
    choose_baseline,
    compare_groups,
    find_groups,
    group_runs,
    select_best_groups,
    sort_groups,
)
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_record import ReportInput, StudyRecord
from pipeline.report.plots.drawing import NUM_COLORS
from pipeline.report.sections.search_section import group_trials

MAX_OVERLAID = NUM_COLORS
"""The number of settings whose training curves share a plot at most: as many as there are colors."""


@dataclass(frozen=True)
class Content:
    """The runs that were read, in groups, and their comparison."""

    given: ReportInput
    groups: tuple[Group, ...]
    """The settings that are compared; trials of searches are not among them."""
    trials: tuple[Group, ...]
    """The trials of searches that left a run folder, the best first."""
    differences: tuple[Difference, ...]
    baseline: Group | None

    @property
    def everything(self) -> list[Group]:
        """The settings, then the trials."""
        return [*self.groups, *self.trials]

    @property
    def searches(self) -> list[StudyRecord]:
        """The searches that have a trial."""
        return [study for study in self.given.studies if study.is_search and study.trials]

    @property
    def missing(self) -> list[tuple[str, tuple[str, ...]]]:
        """Pairs of a study or run, and sentences about what it lacks."""
        runs = [(run.name, run.missing) for run in self.runs if run.folder not in self.stopped]
        studies = [(study.name, study.missing) for study in self.given.studies]
        return [(name, sentences) for name, sentences in [*studies, *runs] if sentences]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, repeated ones included."""
        return [run for group in self.everything for run in (*group.runs, *group.repeats)]

    @property
    def stopped(self) -> set[Path]:
        """The run folders of trials that are not complete, which have no evaluation for this reason."""
        trials = [trial for study in self.given.studies if study.is_search for trial in study.trials]
        return {trial.folder for trial in trials if trial.folder is not None and trial.state != "complete"}

    @property
    def overlaid(self) -> list[Group]:
        """The settings whose training curves are drawn."""
        return select_best_groups(self.groups or self.trials, self.baseline, MAX_OVERLAID)


def collect_content(given: ReportInput, baseline: Mapping[str, Any] | None = None) -> Content:
    """Groups the runs by setting, compares the settings, and collects the trials of searches."""
    searched = [run for run in given.runs if (study := given.find_study(run)) and study.is_search]
    groups = sort_groups(group_runs([run for run in given.runs if all(run is not other for other in searched)]))
    groups = [_name_after_cell(group, given) for group in groups]
    trials = group_trials([study for study in given.studies if study.is_search], searched)
    wanted = baseline or _find_planned_baseline(given, groups)
    return Content(given, tuple(groups), tuple(trials), tuple(compare_groups(groups, wanted)), choose_baseline(groups, wanted))


def _find_planned_baseline(given: ReportInput, groups: Sequence[Group]) -> Group | None:
    """Finds the group of the baseline that the only study names, if it has a run.

    It is the group of the cell that changes just the baseline's keys: another cell may have the same values of them and change
    further keys.
    """
    params = given.studies[0].baseline if len(given.studies) == 1 else None
    if not params:
        return None
    cells = [{key: trial.params[key] for key in trial.params if key != "run.seed"} for trial in given.studies[0].trials]
    folders = {trial.folder for trial, cell in zip(given.studies[0].trials, cells, strict=True) if cell == params}
    exact = [group for group in groups if any(run.folder in folders for run in group.runs)]
    return next(iter(exact or find_groups(groups, params)), None)


def _name_after_cell(group: Group, given: ReportInput) -> Group:
    """Renames a group after its cell if a study names its cells."""
    trials = [trial for study in given.studies if study.has_named_cells for trial in study.trials]
    cells = {trial.folder: trial.cell for trial in trials if trial.folder is not None}
    runs = (*group.runs, *group.repeats)
    names = dict.fromkeys(cells[run.folder] for run in runs if run.folder in cells)
    return replace(group, label=" = ".join(names)) if names and all(run.folder in cells for run in runs) else group
