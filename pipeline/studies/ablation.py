"""Ablations: a grid of configuration keys x seeds, each cell an ordinary run.

A trial is named after what it changes, and its run folder says whether it is done. So the study has no state of its own:
the same command again runs what is missing and continues what was cut off. ``study.json`` tells others what belongs to it.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, override
from pipeline.errors import UserError
from pipeline.manifest.labels import LabelSubset, draw_labels, read_labels, write_labels
from pipeline.manifest.schema import read_manifest
from pipeline.run_folder import write_text
from pipeline.studies.run import evaluated
from pipeline.studies.study_file import LABELS, Study, resolve
from pipeline.studies.trials import Budget, Job, run_jobs
from pipeline.training.fit import prepare

MANIFEST = "study.json"


@dataclass(frozen=True)
class Trial:
    """One cell with one seed."""

    cell: str
    seed: int
    config: Config
    """Complete; its run folder lies in the study's folder."""
    values: Mapping[str, Any]
    """What the cell changes, by key, as the run uses it."""

    @property
    def labels(self) -> str | None:
        """How this cell's label subset is drawn, if the study draws them: ``10%`` or ``4/class``."""
        spec = self.values.get(LABELS)
        return None if spec is None else str(spec)


def study_folder(study: Study, base: Config) -> Path:
    """Where the study's runs lie."""
    return Path(base.run.storage_path).expanduser().resolve() / study.name


def plan_trials(study: Study, base: Config, seeds: int) -> list[Trial]:
    """All cells x seeds, each checked. Raises UserError with all mistakes of a cell at once."""
    folder = study_folder(study, base)
    trials = []
    for seed in range(base.run.seed, base.run.seed + seeds):
        for cell, given in study.cells.items():
            values = resolve(given, base, study.name)
            words = [f"{key}={json.dumps(value)}" for key, value in values.items() if key != LABELS]
            words += [f"run.storage_path={folder}", f"run.name={cell}_seed-{seed}", f"run.seed={seed}"]
            if LABELS in values:
                words.append(f"data.labels={folder / 'labels' / _file_name(str(values[LABELS]), seed)}")
            config = override(base.model_dump(mode="json"), words, source=f"study {study.name}, {cell}")
            trials.append(Trial(cell, seed, config, values))
    return trials


def _file_name(spec: str, seed: int) -> str:
    text = spec.replace("%", "-percent").replace("/class", "-per-class").replace(" ", "")
    return f"{text}_seed-{seed}.parquet"


def draw_subsets(trials: Sequence[Trial], write: bool) -> None:
    """The label subsets of the cells that ask for one, drawn by the trial's seed: methods of one seed share theirs.

    One that is there must be the same. Raises UserError for what cannot be drawn, before anything is written.
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


def run_study(study: Study, trials: Sequence[Trial], budget: Budget) -> list[str]:
    """Run what is missing within the budget; returns what went wrong, a line per trial.

    Everything that can be wrong with any trial's input raises UserError before the first one starts.
    """
    draw_subsets(trials, write=True)
    missing = []
    for trial in trials:
        ready = prepare(trial.config)
        ready.source.evaluated(trial.config.evaluation.split)
        if evaluated(ready) is None:
            missing.append(trial)
    write_study(study, trials)
    if not missing:
        return []
    done = len(trials) - len(missing)
    print(f"{done} of {len(trials)} trials are done, {len(missing)} to run, {budget.concurrent} at once", flush=True)
    listed = _Listed(missing)
    run_jobs(listed, missing[0].config, budget)
    return listed.problems


class _Listed:
    """A source of trials that are all known at the start."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._left = list(trials)
        self.problems: list[str] = []

    def next(self) -> Job | None:
        """The next one of the list."""
        if not self._left:
            return None
        config = self._left.pop(0).config
        return Job(config.with_absolute_paths(), (config.train.steps,))

    def scored(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """All run to their end."""
        return True

    def ended(self, job: Job, error: str | None) -> None:
        """Remember what failed."""
        if error is not None:
            self.problems.append(f"{job.name}: {error}")


def write_study(study: Study, trials: Sequence[Trial]) -> None:
    """``study.json`` in the study's folder: question, command and trials, those of earlier commands on it kept."""
    folder = Path(trials[0].config.run.storage_path)
    path = folder / MANIFEST
    listed = {
        trial.config.run.name: {
            "run": trial.config.run.name, "cell": trial.cell, "seed": trial.seed, "values": dict(trial.values),
        }
        for trial in trials
    }  # fmt: skip
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["trials"]
        listed = {one["run"]: one for one in before if one["cell"] in study.cells} | listed
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "kind": "ablation", "name": study.name, "question": study.question, "is_grid": study.is_grid,
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]] if sys.orig_argv[1:2] == ["-m"] else sys.argv),
    }  # fmt: skip
    write_text(path, json.dumps({**about, "trials": list(listed.values())}, indent=1))


def write_csv(path: Path, study: Study, trials: Sequence[Trial]) -> None:
    """One line per cell: its values, then mean and sd of the top-1 over seeds, in percent, and their number."""
    lines = []
    for cell in study.cells:
        mine = [trial for trial in trials if trial.cell == cell]
        summaries = [json.loads((t.config.run_folder / "evaluation.json").read_text(encoding="utf-8")) for t in mine]
        line: dict[str, Any] = {**(mine[0].values if study.is_grid and mine else {"case": cell}), "n": len(summaries)}
        for view in ("primary", "auxiliary", "mean"):
            top1 = [100 * summary[view]["top1"] for summary in summaries]
            line[view] = round(statistics.mean(top1), 3) if top1 else ""
            line[f"{view}_sd"] = round(statistics.stdev(top1), 3) if len(top1) > 1 else ""
        lines += [line] if mine else []
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
