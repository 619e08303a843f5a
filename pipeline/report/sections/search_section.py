"""The report's section on a search: its history, parallel coordinates, importances, Pareto front and trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.analysis.comparison import Group
from pipeline.analysis.importance import compute_importances, find_searched_keys, select_judged_trials
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_record import ReportInput, StudyRecord, TrialRecord
from pipeline.report.parts.sentences import describe_best_trial
from pipeline.report.parts.tables import Table, build_trials_table, shorten_key, sort_best_first
from pipeline.report.plots.drawing import Drawing
from pipeline.report.plots.search_plots import (
    draw_history,
    draw_importances,
    draw_parallel_coordinates,
    draw_pareto_front,
    draw_schedule,
    find_scheduled_keys,
)


@dataclass(frozen=True)
class SearchSection:
    """What the page shows of one search."""

    study: StudyRecord
    answer: str
    wide: tuple[Drawing, ...]
    """Plots that are as wide as the page."""
    small: tuple[Drawing, ...]
    notes: tuple[str, ...]
    table: Table


def build_search_sections(given: ReportInput, link: Callable[[TrialRecord], str]) -> list[SearchSection]:
    """Builds a section for each search that has a trial. ``link`` returns a trial's folder relative to the page."""
    searches = [study for study in given.studies if study.is_search and study.trials]
    return [_build_section(study, given.list_runs(study), link, f"search{index}") for index, study in enumerate(searches)]


def _build_section(
    study: StudyRecord, runs: Sequence[RunRecord], link: Callable[[TrialRecord], str], prefix: str
) -> SearchSection:
    trials, important = select_judged_trials(study), compute_importances(study)
    small, notes = [], []
    if trials:
        small.append(Drawing("Value by trial", draw_history(study, f"{prefix}-history")))
        notes.append(
            "Value by trial: filled dots are complete, hollow ones were stopped early; the line is the best complete so far."
        )
    if important:
        small.append(Drawing("Importance of each knob alone", draw_importances(important, f"{prefix}-importance")))
        notes.append(
            f"Importance: share of the variance of {study.objectives[0].name}’s ranks, over {len(trials)} trials. The upright "
            "mark is what 95 % of random orders stay below: a pale bar is not distinguishable from chance. Effects that two "
            "knobs have only together are not seen."
        )
    elif trials:
        notes.append(f"Importance needs at least 5 judged trials; there {'is' if len(trials) == 1 else 'are'} {len(trials)}.")
    if len(study.objectives) > 1 and trials:
        small.append(Drawing("Two objectives", draw_pareto_front(study, f"{prefix}-front")))
        notes.append("Two objectives: no trial beats one on the joined line in both.")
    wide = []
    if any(len(trial.lineage) > 1 for trial in study.trials) and (keys := find_scheduled_keys(study)):
        small += [
            Drawing(shorten_key(key, keys), draw_schedule(study, key, f"{prefix}-{index}")) for index, key in enumerate(keys)
        ]
        notes.append(
            "Knobs over optimizer steps: each line is a member of the population, from its first ancestor on; the best one’s "
            "is strong."
        )
    if len(trials) > 1 and find_searched_keys(study):
        wide.append(Drawing("Trials, from knobs to value", draw_parallel_coordinates(study, f"{prefix}-parallel")))
    table = build_trials_table(study, runs, link)
    return SearchSection(study, describe_best_trial(study), tuple(wide), tuple(small), tuple(notes), table)


def group_trials(studies: Sequence[StudyRecord], runs: Sequence[RunRecord]) -> list[Group]:
    """Makes each trial with a run folder a group of its own, the best first; runs that no trial names come last."""
    by_folder = {run.folder: run for run in runs}
    groups = []
    for study in studies:
        name = f"{study.name} " if len(studies) > 1 else ""
        for trial in sort_best_first(study):
            if trial.folder is not None and (run := by_folder.pop(trial.folder, None)) is not None:
                groups.append(Group(f"{name}trial {trial.number}", (run,)))
    return groups + [Group(run.name, (run,)) for run in by_folder.values()]
