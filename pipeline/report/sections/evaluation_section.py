"""The evaluation of one run: its figures with their protocol, whether its probabilities can be believed, and its hardest
videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.analysis.records.run_record import Predictions, RunRecord, name_data
from pipeline.evaluation.calibration import apply_temperature, compute_calibration, is_of_evaluation
from pipeline.evaluation.evaluation_summary import compute_figures
from pipeline.report.parts.tables import DASH, Cell, Table, build_percent_cell
from pipeline.report.plots.drawing import Drawing
from pipeline.report.plots.reliability_plots import draw_reliability
from pipeline.report.sections.sample_clips import Sample, show_videos
from pipeline.run_folder.contents import PREDICTORS

NUM_VIDEOS = 4
"""Videos of each kind that are shown."""
MOST_LISTED = 20
"""Videos without scores that are listed by name."""


@dataclass(frozen=True)
class EvaluationFigures:
    """What the page shows of one run's evaluation."""

    id: str
    """The section's id on the page."""
    run: str
    """The run's name, and the other data if it was evaluated on such."""
    protocol: str
    """The protocol in one phrase; "" if the files do not tell."""
    figures: Table
    curves: list[Drawing]
    calibration: Table | None
    """Likelihood and calibration error before and after the run's temperatures; None if it has none."""
    note: str
    """Where the temperatures come from, or why there are none."""
    hardest: list[Sample]
    most_confused: list[Sample]
    without_scores: list[tuple[str, str]]
    """(path, reason) of test videos without scores, and of those of which only some clips could be decoded."""
    more_without_scores: int
    """How many more there are."""


def build_evaluation_section(run: RunRecord | None, anchor: str = "evaluation") -> EvaluationFigures | None:
    """Builds the section of a run, or None if it has no scores of videos with labels. ``anchor`` is its id on the page."""
    predictions = run.predictions if run is not None else None
    if run is None or predictions is None or not (predictions.labels >= 0).any():
        return None
    figures = {predictor: _read_figures(run, predictions, predictor) for predictor in PREDICTORS}
    temperatures = _read_temperatures(run)
    curves, calibrated = [], {}
    for predictor in PREDICTORS:
        after = None
        if temperature := temperatures.get(predictor):
            after = compute_calibration(predictions.labels, apply_temperature(predictions.scores[predictor], temperature))
            calibrated[predictor] = after
        calibrated_bins = after["reliability"] if after else []
        svg = draw_reliability(
            figures[predictor]["reliability"], calibrated_bins, predictor, f"{anchor}-reliability-{predictor}"
        )
        curves.append(Drawing(predictor, svg))
    hardest, confused = choose_hardest(predictions), choose_most_confused(predictions)
    confused = [index for index in confused if index not in hardest][:NUM_VIDEOS]
    samples = show_videos(run, [*hardest, *confused])
    notes = [_describe_true_class(predictions, index) for index in hardest]
    notes += [_describe_first_two(predictions, index) for index in confused]
    samples = [replace(sample, note=note) for sample, note in zip(samples, notes, strict=True)]
    lost = [(path, reason) for key in ("undecodable", "unusable", "partly_decoded")
            for path, reason in (run.evaluation.get(key) or {}).items()]  # fmt: skip
    other = f" on {name_data(run.evaluation)}" if run.evaluation.get("other_data") else ""
    return EvaluationFigures(
        id=anchor,
        run=run.name + other,
        protocol=run.describe_protocol(),
        figures=build_figures_table(run, figures),
        curves=curves,
        calibration=build_calibration_table(run, figures, calibrated) if calibrated else None,
        note=_explain_temperatures(run, temperatures),
        hardest=samples[: len(hardest)],
        most_confused=samples[len(hardest) :],
        without_scores=lost[:MOST_LISTED],
        more_without_scores=max(len(lost) - MOST_LISTED, 0),
    )


def choose_hardest(predictions: Predictions) -> list[int]:
    """Chooses the labeled videos to whose true class the mean of the students gives the lowest probability; indices."""
    known = np.flatnonzero(predictions.labels >= 0)
    of_true = np.nan_to_num(predictions.scores["mean"][known, predictions.labels[known]])
    return [int(known[index]) for index in np.argsort(of_true, kind="stable")[:NUM_VIDEOS]]


def choose_most_confused(predictions: Predictions) -> list[int]:
    """Orders the labeled videos by how close the two highest probabilities of the mean are, the closest first; indices of twice
    as many as are shown."""
    known = np.flatnonzero((predictions.labels >= 0) & np.isfinite(predictions.scores["mean"]).all(axis=1))
    if predictions.scores["mean"].shape[1] < 2:
        return []
    two = -np.partition(-predictions.scores["mean"][known], 1, axis=1)[:, :2]
    return [int(known[index]) for index in np.argsort(two[:, 0] - two[:, 1], kind="stable")[: 2 * NUM_VIDEOS]]


def _read_figures(run: RunRecord, predictions: Predictions, predictor: str) -> dict[str, Any]:
    """Reads the figures of evaluation.json, or computes them for a run that an earlier version evaluated."""
    own = run.evaluation.get(predictor) or {}
    if "reliability" in own and run.evaluation.get("videos") == int((predictions.labels >= 0).sum()):
        return dict(own)
    return compute_figures(predictions.labels, predictions.scores[predictor], predictions.classes)


def _read_temperatures(run: RunRecord) -> dict[str, float]:
    """Returns the temperature of each student that has one, if calibration.json is of the evaluated weights and protocol."""
    if not is_of_evaluation(run.calibration, run.evaluation) or run.split != "test":
        return {}
    known = {predictor: (run.calibration.get(predictor) or {}).get("temperature") for predictor in PREDICTORS}
    return {predictor: float(value) for predictor, value in known.items() if isinstance(value, int | float) and value > 0}


def _explain_temperatures(run: RunRecord, temperatures: dict[str, float]) -> str:
    if temperatures:
        return (
            f"Temperatures were found on {run.calibration.get('videos')} held-out videos; the figures after them are of the "
            "test videos. They change no predicted class, and so no accuracy."
        )
    if not run.calibration and run.is_model:
        return "No temperatures: a run is calibrated (python -m jobs.evaluate RUN_FOLDER --calibrate), and then exported again."
    if not run.calibration:
        return "No temperatures yet: python -m jobs.evaluate RUN_FOLDER --calibrate finds them on held-out videos."
    if run.split != "test":
        return "Temperatures are not applied here: these are the videos that they were found on."
    if not is_of_evaluation(run.calibration, run.evaluation):
        remedy = "evaluate and calibrate again"
        return f"Temperatures in calibration.json are of another checkpoint or protocol, and are not applied: {remedy}."
    return "No temperature makes the held-out videos most likely; docs/evaluation.md says when that is so."


def build_figures_table(run: RunRecord, figures: dict[str, dict[str, Any]]) -> Table:
    """Builds a table of all figures, a row for each student."""
    columns = ("scored by", "top-1 %", "95 % interval", "top-5 %", "class mean %", "NLL", "ECE %", "with undecodable %")
    rows = []
    for predictor, one in figures.items():
        low, high = one["interval"].get("top1", (None, None))
        interval = Cell(DASH) if low is None else Cell(f"{100 * low:.1f} to {100 * high:.1f}", one["top1"])
        rows.append((
            Cell(predictor, predictor), _build_share_cell(one["top1"]), interval, _build_share_cell(one["top5"]),
            _build_share_cell(one["mean_class_accuracy"]), _build_number_cell(one["nll"]), _build_share_cell(one["ece"]),
            _build_share_cell(one["top1_with_undecodable"]),
        ))  # fmt: skip
    text = (
        "The interval is over videos (bootstrap), not over seeds. Class mean: the mean of the classes’ accuracies. NLL: mean "
        "negative log-likelihood of the true class, in nats. ECE: expected calibration error. With undecodable: top-1 if "
    )
    lost = run.evaluation.get("labeled_without_scores")
    text += f"labeled videos without scores{'' if lost is None else f' ({lost})'} count as wrong."
    return Table(columns, (False, *(True for _ in columns[1:])), tuple(rows), text)


def build_calibration_table(run: RunRecord, figures: dict[str, dict[str, Any]], calibrated: dict[str, dict[str, Any]]) -> Table:
    """Builds a table of likelihood and calibration error before and after temperature scaling, on test videos."""
    columns = ("scored by", "temperature", "NLL before", "NLL after", "ECE before %", "ECE after %")
    rows = [
        (Cell(predictor, predictor), _build_number_cell(run.calibration[predictor]["temperature"]),
         _build_number_cell(figures[predictor]["nll"]), _build_number_cell(after["nll"]),
         _build_share_cell(figures[predictor]["ece"]), _build_share_cell(after["ece"]))
        for predictor, after in calibrated.items()
    ]  # fmt: skip
    text = "On the test videos. A temperature above 1 makes confident predictions less so, one below 1 makes them more so."
    return Table(columns, (False, *(True for _ in columns[1:])), tuple(rows), text)


def _build_share_cell(share: float | None) -> Cell:
    return build_percent_cell(None if share is None else 100 * share)


def _build_number_cell(value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(f"{value:.3f}", value)


def _describe_true_class(predictions: Predictions, index: int) -> str:
    share = float(np.nan_to_num(predictions.scores["mean"][index, predictions.labels[index]]))
    return f"the mean gives the true class {100 * share:.1f} %"


def _describe_first_two(predictions: Predictions, index: int) -> str:
    scores = predictions.scores["mean"][index]
    first, second = np.argsort(-scores, kind="stable")[:2]
    names = predictions.classes
    return f"the mean gives {names[first]} {100 * scores[first]:.1f} %, {names[second]} {100 * scores[second]:.1f} %"
