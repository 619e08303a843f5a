"""Ablations: all combinations of some configuration keys' values with some seeds, each an ordinary run.

A trial is named after what it changes, and its run folder tells whether it is done. So the study keeps no state of its own:
the same command again runs what is missing and continues what was cut off.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.analysis.records.run_progress import read_saved_progress
from pipeline.config import Config, override
from pipeline.errors import UserError
from pipeline.files.folder_lock import IN_USE, lock_file
from pipeline.lifecycle.train_and_evaluate import read_evaluation, sum_training_seconds
from pipeline.manifest.label_subset import LabelSubset, draw_labels, read_labels, write_labels
from pipeline.manifest.schema import read_manifest
from pipeline.run_folder.study_folder import read_trials, write_study_facts, write_trials
from pipeline.studies.run_trials import run_jobs
from pipeline.studies.study_file import LABELS, Study, resolve_multiples
from pipeline.studies.trials import Budget, Job
from pipeline.training.prepared_run import prepare_run

FILES_SECONDS = 60.0
"""How long to wait until another command on the same study has written study.json and trials.jsonl, which takes a moment."""


@dataclass(frozen=True)
class Trial:
    """One cell of a study with one seed, which is to be run.

    What a study's files say about a trial is ``pipeline.analysis.records.study_record.TrialRecord``.
    """

    cell: str
    seed: int
    config: Config
    """The complete configuration; the run folder lies in the study's folder."""
    values: Mapping[str, Any]
    """What the cell changes: values by configuration key, as the run uses them."""

    @property
    def labels(self) -> str | None:
        """How the label subset of this cell is drawn, ``10%`` or ``4/class``; None if the study draws none."""
        spec = self.values.get(LABELS)
        return None if spec is None else str(spec)


def find_study_folder(name: str, base: Config) -> Path:
    """Returns the folder of the study's runs.

    Raises UserError for an object store, because locks on files keep the commands on a study apart.
    """
    if "://" in base.run.storage_path:
        raise UserError(f"run.storage_path={base.run.storage_path}: studies and searches need a local or shared folder")
    return Path(base.run.storage_path).expanduser().resolve() / name


def plan_trials(study: Study, base: Config, seeds: int) -> list[Trial]:
    """Plans a trial for each cell and seed, and checks it. Raises UserError with all mistakes of a cell at once."""
    folder = find_study_folder(study.name, base)
    trials = []
    for seed in range(base.run.seed, base.run.seed + seeds):
        for cell, given in study.cells.items():
            values = resolve_multiples(given, base, study.name)
            words = [f"{key}={json.dumps(value)}" for key, value in values.items() if key != LABELS]
            words += [f"run.storage_path={folder}", f"run.name={cell}_seed-{seed}", f"run.seed={seed}"]
            if LABELS in values:
                words.append(f"data.labels={folder / 'labels' / _name_labels_file(values, seed)}")
            config = override(base.model_dump(mode="json"), words, source=f"study {study.name}, {cell}")
            trials.append(Trial(cell, seed, config, values))
    return trials


def drop_duplicates(trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    """Drops the trials of cells that are, but for the name, the same runs as those of an earlier cell.

    Such runs would count twice and make 6 seeds of 3. Also returns a sentence for each dropped cell.
    """
    first: dict[str, Trial] = {}
    kept, notes = [], {}
    for trial in trials:
        run = trial.config.run.model_copy(update={"name": ""})
        original = first.setdefault(trial.config.model_copy(update={"run": run}).model_dump_json(), trial)
        if original is trial:
            kept.append(trial)
        else:
            notes[trial.cell] = f"{trial.cell} is left out: with this configuration it is the same run as {original.cell}"
    return kept, list(notes.values())


def _name_labels_file(values: Mapping[str, Any], seed: int) -> str:
    """The name says which manifest the labels belong to if the cell has one of its own."""
    text = str(values[LABELS]).replace("%", "-percent").replace("/class", "-per-class").replace(" ", "")
    manifest = re.sub(r"[^\w.-]+", "-", str(values.get("data.manifest", ""))).strip("-")
    return f"{text}_{f'{manifest}_' if manifest else ''}seed-{seed}.parquet"


def draw_subsets(trials: Sequence[Trial], write: bool) -> None:
    """Draws the label subsets of the cells that ask for one, with the trial's seed: methods with the same seed share a subset.

    A subset that already exists must be the same. Raises UserError for what cannot be drawn, before anything is written.
    """
    drawn: dict[str, tuple[LabelSubset, Config]] = {}
    for trial in trials:
        if trial.labels is not None and trial.config.labels_path not in drawn:
            manifest = read_manifest(trial.config.data.manifest, root=trial.config.data.root)
            subset = draw_labels(manifest, trial.labels, trial.seed)
            path = Path(trial.config.labels_path)
            if path.is_file() and read_labels(path, manifest).fingerprint != subset.fingerprint:
                raise UserError(f"{path} holds other labels than {trial.labels} of seed {trial.seed}; delete it")
            drawn[trial.config.labels_path] = (subset, trial.config)
    for name, (subset, config) in drawn.items() if write else ():
        if not Path(name).is_file():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            write_labels(subset, read_manifest(config.data.manifest, root=config.data.root), name)


def find_unfinished(trials: Sequence[Trial]) -> list[Trial]:
    """Finds the trials without an evaluation, and checks the inputs of all trials whose labels are already drawn.

    Prints the notes of these checks. Raises UserError if an input is wrong.
    """
    missing: list[Trial] = []
    notes: dict[str, None] = {}
    for trial in trials:
        if trial.labels is None or Path(trial.config.labels_path).is_file():
            ready = prepare_run(trial.config)
            ready.run.source.find_evaluation_rows(trial.config.evaluation.split)
            notes |= dict.fromkeys(ready.notes)
            if read_evaluation(ready) is not None:
                continue
        missing.append(trial)
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    return missing


def run_study(study: Study, trials: Sequence[Trial], base: Config, afford: Callable[[], Budget]) -> dict[str, str]:
    """Runs the trials that are missing within the budget, and returns what went wrong, by run.

    ``afford`` is called for the budget only if a trial is missing. Raises UserError before the first trial starts if anything
    is wrong with the input of any trial.
    """
    draw_subsets(trials, write=True)
    missing = find_unfinished(trials)
    write_study(study, trials, base, {})
    if not missing:
        return {}
    done, budget = len(trials) - len(missing), afford()
    print(f"{done} of {len(trials)} trials are done, {len(missing)} to run, {budget.concurrent} at once", flush=True)
    source = _ListedTrials(missing, partial(write_study, study, trials, base))
    run_jobs(source, missing[0].config.with_absolute_paths(), budget)
    write_study(study, trials, base, source.problems)
    return source.problems


class _ListedTrials:
    """A source of trials that are all known at the start."""

    def __init__(self, trials: Sequence[Trial], write: Callable[[Mapping[str, str]], None]) -> None:
        """``write(problems)`` is called whenever a trial has ended, so that a killed study says how far it came."""
        self._left, self._write = list(trials), write
        self.problems: dict[str, str] = {}

    def next_job(self) -> Job | None:
        """The next one of the list."""
        if not self._left:
            return None
        config = self._left.pop(0).config
        return Job(config.with_absolute_paths(), (config.train.steps,))

    def report_scores(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """All run to their end."""
        return True

    def report_end(self, job: Job, error: str | None) -> None:
        """Remember what failed."""
        if error is not None:
            self.problems[job.name] = error
        self._write(self.problems)


def write_study(study: Study, trials: Sequence[Trial], base: Config, failed: Mapping[str, str]) -> None:
    """Writes ``study.json`` and ``trials.jsonl``; trials of earlier commands on the study are kept.

    ``failed`` says for each failed run why it failed.
    """
    folder = find_study_folder(study.name, base)
    objectives = [{"name": name, "direction": "maximize"} for name in ("mean", "primary", "auxiliary")]
    about = {"name": study.name, "kind": "ablation", "question": study.question, "objectives": objectives,
             "baseline": _find_baseline(trials, base)}  # fmt: skip
    with lock_file(folder / ".study.lock", str(folder), FILES_SECONDS, elsewhere="choose another run.storage_path"):
        write_study_facts(folder, about)
        known = {line["run_folder"]: line for line in read_trials(folder)}
        for trial in trials:
            name = trial.config.run.name
            free = 1 + max((line["number"] for line in known.values()), default=-1)
            known[name] = _build_line(trial, known[name]["number"] if name in known else free, failed.get(name))
        write_trials(folder, sorted(known.values(), key=lambda line: int(line["number"])))


def _find_baseline(trials: Sequence[Trial], base: Config) -> dict[str, Any] | None:
    """Finds the cell that is the configuration as it is, for others to be compared with; None if there is none.

    It is also None for a comparison of methods, whose baseline is the supervised one.
    """
    plain = base.compute_fingerprint()
    for trial in trials:
        values = {key: value for key, value in trial.values.items() if key != LABELS}
        same = trial.config.model_copy(update={"run": base.run}).compute_fingerprint() == plain
        if same and values and "method.name" not in values:
            return values
    return None


def _build_line(trial: Trial, number: int, failure: str | None) -> dict[str, Any]:
    """Builds the trial's line of ``trials.jsonl``."""
    state = read_saved_progress(trial.config)
    values: dict[str, float | None] = dict.fromkeys(("mean", "primary", "auxiliary"))
    if state.is_done:
        summary = json.loads((trial.config.run_folder / "evaluation.json").read_text(encoding="utf-8"))
        values = {name: summary[name]["top1"] for name in values}
    busy = IN_USE in (failure or "")  # another command runs it, and will say what came of it
    failure = None if busy else failure
    word = "complete" if state.is_done else "failed" if failure else "running" if state.step or busy else "waiting"
    seconds = sum_training_seconds(trial.config.run_folder, trial.config.train.steps)
    return {
        "number": number, "state": word, "params": {**trial.values, "run.seed": trial.seed}, "values": values,
        "seconds": seconds or None, "run_folder": trial.config.run.name, "message": failure or "",
    }  # fmt: skip
