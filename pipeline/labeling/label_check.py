"""Finds labels that are probably wrong: those that students reject who were trained without them (k folds over the labels)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.analysis.run_reader import read_predictions
from pipeline.clips.source import open_source
from pipeline.config import STUDENTS, Config, override
from pipeline.errors import UserError, list_first
from pipeline.labeling.small_clips import decode_small_clips
from pipeline.labeling.suggest import TOP, Suggestion, Suggestions
from pipeline.lifecycle.saved_run import check_inputs
from pipeline.manifest.label_subset import LabelSubset, Rows, build_subset, read_labels, write_labels
from pipeline.manifest.labeling_answers import guard
from pipeline.manifest.schema import Manifest
from pipeline.run_folder.contents import read_run
from pipeline.seeds import hash_to_uint64
from pipeline.studies.ablation import Trial, run_study
from pipeline.studies.cost import read_progress
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
    manifest: Manifest
    labels: LabelSubset
    folds: tuple[Rows, ...]
    """The labeled rows of each fold, ascending."""

    @property
    def folder(self) -> Path:
        """The folder of the study, beside the run."""
        return self.run.parent / f"{self.run.name}_label_check"


@dataclass(frozen=True)
class Suspect:
    """A labeled video whose label both students reject."""

    row: int
    """Of the manifest."""
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
    rows = labels.rows
    names = manifest.table["group"].to_pylist()
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(names[row] or f"video {row}", []).append(row)
    if len(groups) < folds:
        raise UserError(f"--folds {folds}: the {len(rows)} labeled videos are of {len(groups)} groups (persons or recordings), "
                        f"and a group is never divided; write at most --folds {len(groups)}")  # fmt: skip
    divided: list[list[int]] = [[] for _ in range(folds)]
    known = labels.read_classes(manifest)

    def rank(
        name: str,
    ) -> tuple[int, int, int]:  # large groups first; videos without a group class by class, so that they spread
        return -len(groups[name]), known[groups[name][0]], int(hash_to_uint64(base.run.seed, "fold", name))

    order = sorted(groups, key=rank)
    for name in order:
        min(divided, key=len).extend(groups[name])
    check = LabelCheck(run, base, manifest, labels, tuple(np.array(sorted(part), np.int64) for part in divided))
    _check_classes(check)
    return check


def _check_classes(check: LabelCheck) -> None:
    """Raises UserError that names the classes all of whose labels lie in one fold."""
    known = check.labels.read_classes(check.manifest)
    lost = {
        known[row]
        for fold in check.folds
        for row in fold.tolist()
        if not any(known[other] == known[row] for other in np.setdiff1d(check.labels.rows, fold).tolist())
    }
    if lost:
        names = [check.manifest.classes[label] for label in sorted(lost)]
        raise UserError(
            f"{len(lost)} classes have all their labels in one fold, so that nothing could be learned of them without it; "
            "label more videos of these, or of other groups:",
            list_first(names),
        )


def run_label_check(check: LabelCheck, choose_concurrency: Callable[[], int], hours: float | None = None) -> dict[str, str]:
    """Trains and evaluates the runs that are missing, and returns what went wrong, by run."""
    trials = list_trials(check)
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


def list_trials(check: LabelCheck) -> list[Trial]:
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
    for trial in list_trials(check):
        if not read_progress(trial.config).is_done:
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
        names, mean = check.manifest.classes, suspect.probabilities.mean(axis=0)
        guesses = [(names[int(own.argmax())], float(own.max())) for own in suspect.probabilities]
        asked = list(dict.fromkeys([suspect.label, *(int(own.argmax()) for own in suspect.probabilities)]))
        others = [int(index) for index in np.argsort(-mean, kind="stable") if int(index) not in asked]
        best = sorted([*asked, *others][:TOP], key=lambda index: -mean[index])
        (first, p), (second, q) = guesses
        both = f"both students say {first} ({p:.0%} and {q:.0%})" if first == second else (
            f"the students say {first} ({p:.0%}) and {second} ({q:.0%})")  # fmt: skip
        reason = f"labeled {names[suspect.label]}, but {both}"
        video_id, uri = (str(check.manifest.table[name][suspect.row].as_py()) for name in ("id", "uri"))
        offered = tuple((names[index], float(mean[index])) for index in best)
        videos.append(Suggestion(suspect.row, video_id, uri, suspect.score, reason, guesses[0], guesses[1], offered))
    source, _ = open_source(check.base)
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
