"""Evaluations on other data than a run's own, or of a model that has none: each with the figures that a run's own one has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.analysis.comparison import Group
from pipeline.analysis.records.run_reader import read_predictions
from pipeline.analysis.records.run_record import RunRecord, name_data
from pipeline.report.sections.class_section import ClassFigures, build_class_section
from pipeline.report.sections.evaluation_section import EvaluationFigures, build_evaluation_section


@dataclass(frozen=True)
class OtherDataFigures:
    """What the page shows of an evaluation on one other data set."""

    evaluation: EvaluationFigures
    classes: ClassFigures


def build_other_data_sections(runs: Sequence[RunRecord]) -> list[OtherDataFigures]:
    """Builds the sections of the first of these runs that was evaluated on other data: one for each data set that has videos
    with labels."""
    run = next((run for run in runs if run.other_data), None)
    sections = []
    for number, record in enumerate(_read_other_evaluations(run) if run is not None else ()):
        anchor = f"other-data{number}"
        if (evaluation := build_evaluation_section(record, anchor)) is not None:
            of = f" in {name_data(record.evaluation)}"
            classes = build_class_section([Group(record.method, (record,))], f"{anchor}-classes", of)
            sections.append(OtherDataFigures(evaluation, classes))
    return sections


def _read_other_evaluations(run: RunRecord) -> list[RunRecord]:
    """Reads the scores of each evaluation on other data. Returns for each a record of the run that has that evaluation in the
    place of its own; one whose scores are gone is left out."""
    records = []
    for content in run.other_data:
        name = f"predictions_on_{(content.get('data') or {}).get('fingerprint')}.parquet"
        if (predictions := read_predictions(run.folder / name, [])) is not None:
            records.append(replace(run, evaluation=content, predictions=predictions, other_data=()))
    return records
