"""Finds labels that are probably wrong: those that students reject who were trained without them (k folds over the labels)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.analysis.records.run_progress import read_saved_progress
from pipeline.analysis.records.run_reader import read_predictions
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import STUDENTS, Config, override
from pipeline.errors import UserError, list_first
from pipeline.labeling.small_clips import decode_small_clips
from pipeline.labeling.suggest import Suggestions, describe_candidate, guess_classes
from pipeline.manifest.label_subset import LabelSubset, Rows, build_subset, read_labels, write_labels
from pipeline.manifest.labeling_answers import guard
from pipeline.manifest.schema import Manifest
from pipeline.run_folder.contents import read_run
from pipeline.saved_models.saved_run import check_inputs
from pipeline.seeds import hash_to_uint64
from pipeline.studies.ablation import Trial, run_study
from pipeline.studies.study_file import Study
from pipeline.studies.trials import Budget

QUESTION = "Which labels do students reject that were trained without them?"
COLUMNS = ("id", "uri", "class", "score", "primary", "primary_probability", "auxiliary", "auxiliary_probability")
"""Columns of mistakes.csv."""


@dataclass(frozen=True)
class LabelCheck:
    """What is checked: a run's labels, by as many runs like it as there are folds."""

    run: Path
    base: Config
    """The configuration of the run, with what the command changes."""
    source: VideoSource
    labels: LabelSubset
    folds: tuple[Rows, ...]
    """The labeled rows of each fold, ascending."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the labels."""
        return self.source.manifest

    @property
    def folder(self) -> Path:
        """The folder of the study, beside the run."""
        return self.run.parent / f"{self.run.name}_label_check"


@dataclass(frozen=True)
class Suspect:
    """A labeled video whose label both students reject."""

    row: int
    """The video's row in the manifest."""
    label: int
    """The class that the label says."""
    score: float
    """0..1: by how much the less decided student finds another class more probable than the label's."""
    probabilities: np.ndarray
    """[2, K] class probabilities of primary and auxiliary."""


def plan_label_check(run: Path, folds: int, overrides: Sequence[str] = ()) -> LabelCheck:
    """Divides a run's labels into folds: videos of a group lie in one fold, and folds are as equal as groups allow.

    Raises UserError if there are fewer groups than folds, or if a class would be without a label where a fold is left out.
    """
    run = run.expanduser().resolve()
    trained, _ = read_run(run)
    base = override(trained.model_dump(mode="json"), overrides, source=f"{run / 'config.yaml'}").with_absolute_paths()
    check_inputs(run / "config.yaml", base)
    source, labels = open_source(base)
    manifest = source.manifest
    rows, known = labels.rows, labels.read_classes(manifest)
    groups: dict[str, list[int]] = {}
    names = manifest.table["group"].take(pa.array(rows, pa.int64())).to_pylist()
    for row, name in zip(rows.tolist(), names, strict=True):
        groups.setdefault(name or f"video {row}", []).append(row)
    if len(groups) < folds:
        raise UserError(f"--folds {folds}: the {len(rows)} labeled videos are of {len(groups)} groups (persons or recordings), "
                        f"and a group is never divided; write at most --folds {len(groups)}")  # fmt: skip
    divided: list[list[int]] = [[] for _ in range(folds)]

    def rank(name: str) -> tuple[int, int, int]:
        """Large groups first; videos without a group class by class, so that each class spreads over the folds."""
        return -len(groups[name]), known[groups[name][0]], int(hash_to_uint64(base.run.seed, "fold", name))

    for name in sorted(groups, key=rank):
        min(divided, key=len).extend(groups[name])
    check = LabelCheck(run, base, source, labels, tuple(np.array(sorted(part), np.int64) for part in divided))
    _check_classes(check)
    return check


def _check_classes(check: LabelCheck) -> None:
    """Raises UserError that names the classes all of whose labels lie in one fold."""
    known = check.labels.read_classes(check.manifest)
    everything = {known[row] for row in check.labels.rows.tolist()}
    lost: set[int] = set()
    for fold in check.folds:
        lost |= everything - {known[row] for row in np.setdiff1d(check.labels.rows, fold).tolist()}
    if lost:
        names = [check.manifest.classes[label] for label in sorted(lost)]
        raise UserError(
            f"{len(lost)} classes have all their labels in one fold, so that nothing could be learned of them without it; "
            "label more videos of these, or of other groups:",
            list_first(names),
        )


def run_label_check(check: LabelCheck, choose_concurrency: Callable[[], int], hours: float | None = None) -> dict[str, str]:
    """Trains and evaluates the runs that are missing, and returns what went wrong, by run."""
    trials = list_fold_trials(check)
    for trial, fold in zip(trials, check.folds, strict=True):
        path = Path(trial.config.labels_path)
        rest = np.setdiff1d(check.labels.rows, fold)
        spec = f"{check.labels.spec}, without fold {trial.cell.partition('-')[2]} of {len(check.folds)}"
        subset = build_subset(check.manifest, rest, fold, spec, check.labels.seed, check.labels.given, check.labels.excluded)
        subset = replace(subset, lineage=check.labels.lineage)
        if path.is_file():
            if read_labels(path, check.manifest).fingerprint != subset.fingerprint:
                raise UserError(f"{path} is of other labels or folds: delete {check.folder}, or ask for the folds of before")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(subset, check.manifest, path)
    study = Study(check.folder.name, QUESTION, {trial.cell: trial.values for trial in trials}, is_grid=False)
    base = _set_storage(check)
    return run_study(study, trials, base, lambda: Budget(choose_concurrency(), hours))


def _set_storage(check: LabelCheck) -> Config:
    """Returns the configuration with the folder in which the study's folder lies."""
    return override(check.base.model_dump(mode="json"), [f"run.storage_path={check.run.parent}"], source="label check")


def list_fold_trials(check: LabelCheck) -> list[Trial]:
    """Lists the run of each fold, which is trained on the other folds and evaluated on its own."""
    trials = []
    for number in range(len(check.folds)):
        cell = f"fold-{number}"
        labels = check.folder / "labels" / f"{cell}.parquet"
        words = [f"run.storage_path={check.folder}", f"run.name={cell}", f"data.labels={labels}", "evaluation.split=validation"]
        config = override(check.base.model_dump(mode="json"), words, source=f"label check, {cell}")
        trials.append(Trial(cell, config.run.seed, config, {"fold": number}))
    return trials


def find_suspects(check: LabelCheck) -> tuple[list[Suspect], int]:
    """Finds the labels that both students reject, the most decided rejection first.

    Returns how many labels were checked, too: only those of folds whose run is complete. Raises UserError if a file cannot be
    read.
    """
    known, rows = check.labels.read_classes(check.manifest), {}
    for row in check.labels.rows.tolist():
        rows[str(check.manifest.table["id"][row].as_py())] = row
    suspects, checked = [], 0
    for trial in list_fold_trials(check):
        if not read_saved_progress(trial.config).is_done:
            continue
        problems: list[str] = []
        scores = read_predictions(trial.config.run_folder / "predictions.parquet", problems)
        if scores is None:
            raise UserError(f"{trial.config.run_folder}: {'; '.join(problems)}")
        for index, name in enumerate(scores.ids):
            row = rows[name]
            checked += 1
            both = np.stack([scores.scores[student][index] for student in STUDENTS])
            margin = float((both.max(axis=1) - both[:, known[row]]).min())
            if margin > 0:
                suspects.append(Suspect(row, known[row], margin, both))
    return sorted(suspects, key=lambda suspect: (-suspect.score, suspect.row)), checked


def describe_suspects(check: LabelCheck, suspects: Sequence[Suspect]) -> Suggestions:
    """Describes suspects as the labeling page shows them, with the label among the offered classes."""
    videos = []
    for suspect in suspects:
        (first, p), (second, q) = guess_classes(check.manifest, suspect.probabilities)
        both = f"the students say {first} ({p:.0%}) and {second} ({q:.0%})"
        if first == second:
            both = f"both students say {first} ({p:.0%} and {q:.0%})"
        reason = f"labeled {check.manifest.classes[suspect.label]}, but {both}"
        also = (suspect.label,)
        videos.append(describe_candidate(check.manifest, suspect.row, suspect.score, suspect.probabilities, also, reason))
    source = check.source
    for index, clip in decode_small_clips([source.describe_video(suspect.row) for suspect in suspects]):
        videos[index] = replace(videos[index], clip=clip)
    return Suggestions(check.run, source, check.base.labels_path, tuple(videos), ())


def format_suspects(check: LabelCheck, suspects: Suggestions) -> str:
    """Formats mistakes.csv: the labels that are rejected, the most decided rejection first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    known = check.labels.read_classes(check.manifest)
    for video in suspects.videos:
        guesses = [cell for name, share in (video.primary, video.auxiliary) for cell in (guard(name), f"{share:.4f}")]
        label = guard(check.manifest.classes[known[video.row]])
        writer.writerow([guard(video.id), guard(video.uri), label, f"{video.score:.4f}", *guesses])
    return buffer.getvalue()
