"""What the page says of a search: history, parallel coordinates, importance, front, and its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.analysis.comparison import Group
from pipeline.analysis.importance import importances, judged, searched_keys
from pipeline.analysis.run_reader import Run
from pipeline.analysis.study_reader import Given, Study, Trial
from pipeline.report.plots.drawing import Drawing
from pipeline.report.plots.search_plots import (
    front_svg,
    history_svg,
    importance_svg,
    parallel_svg,
    schedule_svg,
    scheduled_keys,
)
from pipeline.report.sentences import best_trial
from pipeline.report.tables import Table, best_first, short_key, trials_table


@dataclass(frozen=True)
class SearchSection:
    """One search."""

    study: Study
    answer: str
    wide: tuple[Drawing, ...]
    """Pictures as wide as the page."""
    small: tuple[Drawing, ...]
    notes: tuple[str, ...]
    table: Table


def search_sections(given: Given, link: Callable[[Trial], str]) -> list[SearchSection]:
    """One for each search with a trial."""
    searches = [study for study in given.studies if study.is_search and study.trials]
    return [_section(study, link, f"search{place}") for place, study in enumerate(searches)]


def _section(study: Study, link: Callable[[Trial], str], prefix: str) -> SearchSection:
    trials, important = judged(study), importances(study)
    small, notes = [], []
    if trials:
        small.append(Drawing("Value by trial", history_svg(study, f"{prefix}-history")))
        notes.append(
            "Value by trial: filled dots are complete, hollow ones were stopped early; the line is the best complete so far."
        )
    if important:
        small.append(Drawing("Importance of each knob alone", importance_svg(important, f"{prefix}-importance")))
        notes.append(
            f"Importance: share of the variance of {study.objectives[0].name}’s ranks, over {len(trials)} trials. The upright "
            "mark is what 95 % of random orders stay below: a pale bar is not distinguishable from chance. Effects that two "
            "knobs have only together are not seen."
        )
    elif trials:
        notes.append(f"Importance needs at least 5 judged trials; there {'is' if len(trials) == 1 else 'are'} {len(trials)}.")
    if len(study.objectives) > 1 and trials:
        small.append(Drawing("Two objectives", front_svg(study, f"{prefix}-front")))
        notes.append("Two objectives: no trial beats one on the joined line in both.")
    wide = []
    if any(len(trial.lineage) > 1 for trial in study.trials) and (keys := scheduled_keys(study)):
        small += [
            Drawing(short_key(key, keys), schedule_svg(study, key, f"{prefix}-{place}")) for place, key in enumerate(keys)
        ]
        notes.append(
            "Knobs over optimizer steps: each line is a member of the population, from its first ancestor on; the best one’s "
            "is strong."
        )
    if len(trials) > 1 and searched_keys(study):
        wide.append(Drawing("Trials, from knobs to value", parallel_svg(study, f"{prefix}-parallel")))
    return SearchSection(study, best_trial(study), tuple(wide), tuple(small), tuple(notes), trials_table(study, link))


def trial_groups(studies: Sequence[Study], runs: Sequence[Run]) -> list[Group]:
    """Each trial with a run folder as a setting of its own, the best first; runs that no trial names come last."""
    by_folder = {run.folder: run for run in runs}
    found = []
    for study in studies:
        name = f"{study.name} " if len(studies) > 1 else ""
        for trial in best_first(study):
            if trial.folder is not None and (run := by_folder.pop(trial.folder, None)) is not None:
                found.append(Group(f"{name}trial {trial.number}", (run,)))
    return found + [Group(run.name, (run,)) for run in by_folder.values()]
