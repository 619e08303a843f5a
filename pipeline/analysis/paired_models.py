"""Compares two trained models on the same videos: how much better one is, on which videos and for which classes.

The result is about these two models. Whether one *setting* is better than the other needs several seeds: see ``comparison``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.analysis.records.run_reader import read_predictions
from pipeline.analysis.records.run_record import Predictions
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.analysis.statistics import Estimate, estimate_mean
from pipeline.errors import UserError, suggest
from pipeline.evaluation.metrics import find_predicted_classes
from pipeline.evaluation.protocol import describe_protocols
from pipeline.model_folder.read_folder import WEIGHTS, is_model_folder, read_checksums, read_model_folder
from pipeline.run_folder.contents import PREDICTORS


@dataclass(frozen=True)
class ModelResults:
    """Which test videos one student of a run, or the mean of both, classified correctly."""

    name: str
    """``RUN:STUDENT``."""
    is_correct: Mapping[str, bool]
    """Whether the predicted class is the true one, by video id; videos of unknown class are left out."""
    labels: Mapping[str, str]
    """The name of the true class, by video id."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """How the videos were scored, as evaluation.json tells it; empty if the run does not tell."""


@dataclass(frozen=True)
class ClassGap:
    """The top-1 accuracy of both models on the videos of one class."""

    name: str
    videos: int
    first: float
    second: float
    """Top-1 accuracy in percent."""

    @property
    def gap(self) -> float:
        """The percentage points by which the first model is better."""
        return self.first - self.second


@dataclass(frozen=True)
class PairedModels:
    """The comparison of two models on the videos that both were tested on."""

    first: ModelResults
    second: ModelResults
    ids: tuple[str, ...]
    estimates: tuple[Estimate, Estimate]
    """The top-1 accuracy of each in percent, with an interval over videos."""
    difference: Estimate
    """The first minus the second in percentage points: a paired bootstrap over videos, and p by McNemar's exact test."""
    both: int
    only_first: int
    only_second: int
    neither: int
    """The numbers of videos that both, only one, or neither of the models classified correctly."""
    classes: tuple[ClassGap, ...]
    """The classes, by descending gap."""
    protocol: str = ""
    """A sentence on how the videos were scored; "" if neither model tells."""
    notes: tuple[str, ...] = ()
    """What is missing, for example that only one model was tested on some videos."""


def read_results(spec: str) -> ModelResults:
    """Reads ``RUN`` (the mean of both students) or ``RUN:primary``, ``RUN:auxiliary``, ``RUN:mean``. Raises UserError.

    RUN is the folder of an evaluated run, a model folder that was evaluated, or a file of scores (predictions*.parquet).
    """
    folder, colon, student = spec.rpartition(":")
    if not colon or (student not in PREDICTORS and Path(spec).exists()):
        folder, student = spec, "mean"
    if student not in PREDICTORS:
        raise UserError(f"{spec}: {student!r} is not one of {', '.join(PREDICTORS)}{suggest(student, PREDICTORS)}")
    name, predictions, evaluation = _read_scores(Path(folder))
    right = find_predicted_classes(predictions.scores[student]) == predictions.labels
    known = [index for index, label in enumerate(predictions.labels) if label >= 0]
    return ModelResults(
        f"{name}:{student}",
        {predictions.ids[index]: bool(right[index]) for index in known},
        {predictions.ids[index]: predictions.classes[predictions.labels[index]] for index in known},
        evaluation,
    )


def _read_scores(path: Path) -> tuple[str, Predictions, Mapping[str, Any]]:
    """Reads the scores of test videos. Returns the name of the run or model that they are of, the scores, and what is known of
    their protocol, as in evaluation.json. Raises UserError."""
    if is_model_folder(path):
        path = path.resolve()
        files = sorted(path.glob("predictions*.parquet"))
        if len(files) > 1:
            raise UserError(f"{path} was evaluated on several data sets: name one of its files instead:", list(map(str, files)))
        if not files:
            remedy = f"python -m jobs.evaluate {path} --manifest MANIFEST writes them"
            raise UserError(f"{path} is a model folder without scores of test videos; {remedy}")
        return path.name, *_read_score_file(files[0])
    if path.is_file() and path.suffix == ".parquet":
        return path.resolve().parent.name, *_read_score_file(path.resolve())
    runs = read_report_input([path]).runs
    if len(runs) != 1:
        raise UserError(f"{path} contains {len(runs)} runs; give the folder of a single run")
    if runs[0].predictions is None:
        why = [sentence for sentence in runs[0].missing if "predictions.parquet" in sentence]
        raise UserError(f"{path} has no scores of test videos; python -m jobs.evaluate {path} writes them", why)
    return runs[0].name, runs[0].predictions, runs[0].completed_evaluation


def _read_score_file(path: Path) -> tuple[Predictions, Mapping[str, Any]]:
    if is_model_folder(path.parent):
        _check_model(path)
    problems: list[str] = []
    predictions = read_predictions(path, problems)
    if predictions is None:
        raise UserError(f"{path} does not hold the scores of test videos, as python -m jobs.evaluate writes them:", problems)
    about: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"actnetformer"])
    return predictions, about if "protocol" in about else {}


def _check_model(scores: Path) -> None:
    """Raises UserError unless the model folder of a file of scores is whole, and its weights are those of the scores, as far
    as the evaluation beside them tells."""
    folder = read_model_folder(scores.parent).folder
    evaluation = folder / scores.with_suffix(".json").name.replace("predictions", "evaluation", 1)
    try:
        weights = json.loads(evaluation.read_text(encoding="utf-8")).get("weights_sha256") if evaluation.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{evaluation} cannot be read: {error}; python -m jobs.evaluate {folder} writes it") from None
    if weights is not None and weights != read_checksums(folder)[WEIGHTS]:
        remedy = f"python -m jobs.evaluate {folder} --manifest MANIFEST replaces them"
        raise UserError(f"{scores} holds scores of other weights than {folder / WEIGHTS} (SHA-256 {weights}); {remedy}")


def compare_models(first: ModelResults, second: ModelResults) -> PairedModels:
    """Compares two models video by video.

    Raises UserError if they share no video, or disagree on the true class of a video.
    """
    ids = [video for video in first.labels if video in second.labels]
    if not ids:
        raise UserError(f"{first.name} and {second.name} have no labeled test video in common")
    if other := [video for video in ids if first.labels[video] != second.labels[video]]:
        example = f"{other[0]}: {first.labels[other[0]]} and {second.labels[other[0]]}"
        results = f"the results of {first.name} and {second.name}"
        raise UserError(f"{len(other)} of {len(ids)} videos have different true classes in {results}", [example])
    hits = np.array([[first.is_correct[video], second.is_correct[video]] for video in ids], dtype=np.float64).T
    counts = [int(((hits[0] == a) & (hits[1] == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))]
    notes = []
    for one, both in ((first, second), (second, first)):
        if alone := len(one.labels.keys() - both.labels.keys()):
            notes.append(f"{alone:,} videos were tested only with {one.name} and are ignored here.")
    return PairedModels(
        first=first,
        second=second,
        ids=tuple(ids),
        estimates=(_estimate_percent(hits[0]), _estimate_percent(hits[1])),
        difference=_estimate_percent(hits[0] - hits[1]),
        both=counts[0],
        only_first=counts[1],
        only_second=counts[2],
        neither=counts[3],
        classes=_compute_class_gaps(first, ids, hits),
        protocol=_compare_protocols(first, second),
        notes=tuple(notes),
    )


def _compare_protocols(first: ModelResults, second: ModelResults) -> str:
    """Returns a sentence on how the videos were scored; "" if neither model tells."""
    phrases = describe_protocols(first.evaluation, second.evaluation)
    if not any(phrases):
        return ""
    if not all(phrases):
        unknown = first if not phrases[0] else second
        return f"Protocol of one model: {phrases[0] or phrases[1]}; that of {unknown.name} is unknown."
    return f"Protocol of both: {phrases[0]}." if phrases[0] == phrases[1] else f"Protocols differ: {'; '.join(phrases)}."


def _estimate_percent(values_N: NDArray[np.float64]) -> Estimate:
    return estimate_mean(values_N[None]).scale(100)


def _compute_class_gaps(model: ModelResults, ids: list[str], hits: NDArray[np.float64]) -> tuple[ClassGap, ...]:
    names = np.array([model.labels[video] for video in ids])
    gaps = [
        ClassGap(str(name), int(inside.sum()), *(float(100 * row[inside].mean()) for row in hits))
        for name in np.unique(names) for inside in [names == name]
    ]  # fmt: skip
    return tuple(sorted(gaps, key=lambda gap: (-gap.gap, gap.name)))
