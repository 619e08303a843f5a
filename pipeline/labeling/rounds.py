"""Simulates rounds of labeling on data whose labels are known: train, choose videos, label them, train again.

Every round of every strategy and seed is an ordinary run in the study's folder, and its label subset a file beside the runs. So
the study keeps no state of its own: the same command again draws what is missing and continues what was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.analysis.records.run_progress import read_saved_progress
from pipeline.config import Config, override
from pipeline.errors import UserError
from pipeline.labeling.candidates import Wish
from pipeline.labeling.ranking import rank_candidates
from pipeline.labeling.strategies import Strategy
from pipeline.lifecycle.train_and_evaluate import plan_scoring
from pipeline.manifest.label_subset import LabelSubset, build_subset, draw_labels, read_labels, write_labels
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.prediction.input_videos import list_inputs
from pipeline.prediction.prediction_run import PredictionRun
from pipeline.saved_models.saved_model import open_model
from pipeline.saved_models.saved_run import open_file_source
from pipeline.studies.ablation import Trial, find_study_folder, run_study
from pipeline.studies.study_file import Study
from pipeline.studies.trials import Budget

QUESTION = "Which videos should be labeled next, so that few labels reach the accuracy of many?"
START = "start"
"""The cell of the runs before the first choice, which all strategies share."""


@dataclass(frozen=True)
class RoundsPlan:
    """What is simulated: for each seed a run with the first labels, and then some rounds of each strategy."""

    base: Config
    """The configuration of every run; ``run.storage_path`` has the study's folder, ``run.seed`` is the first seed."""
    name: str
    start: str
    """How the first labels are drawn, for example ``1/class``, with the seed of the run."""
    strategies: tuple[Strategy, ...]
    rounds: int
    """Rounds of choosing and labeling, each followed by a run from scratch with all labels so far; at least 1."""
    count: int
    """Videos that are labeled in a round; at least 1."""
    seeds: int

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return find_study_folder(self.name, self.base)

    @property
    def num_runs(self) -> int:
        """The number of runs of the whole study."""
        return self.seeds * (1 + self.rounds * len(self.strategies))

    @property
    def has_saved_scores(self) -> bool:
        """Whether training saves scores of unlabeled videos, by which strategies choose; else each run predicts them."""
        return self.base.method.name != "supervised" and self.base.train.save_scores_every > 0

    def list_cells(self, number: int) -> list[tuple[Strategy | None, str]]:
        """Lists the strategies of a round (0 is before the first choice) with the names of their cells."""
        if number == 0:
            return [(None, START)]
        return [(strategy, f"{strategy}_round-{number}") for strategy in self.strategies]

    def list_seeds(self) -> range:
        """Lists the seeds of the runs."""
        return range(self.base.run.seed, self.base.run.seed + self.seeds)


def check_plan(plan: RoundsPlan) -> None:
    """Checks that the labels of all training videos are known, and that they suffice for all rounds. Raises UserError."""
    manifest = read_manifest(plan.base.data.manifest, root=plan.base.data.root)
    rows = manifest.find_training_rows()
    unknown = sum(label < 0 for label in _read_true_labels(manifest, rows))
    if unknown:
        raise UserError(
            f"{unknown} training videos of {manifest.path} have no class, so nobody can answer for them: rounds are simulated "
            "on data whose labels are all known; for your own videos use jobs.suggest and jobs.label --add"
        )
    begun = len(draw_labels(manifest, plan.start, plan.base.run.seed).rows)
    needed = begun + plan.rounds * plan.count
    if needed > len(rows):
        raise UserError(
            f"--start {plan.start} and --rounds {plan.rounds} of --count {plan.count} label {needed} videos, but "
            f"{manifest.path} has {len(rows)} training videos: lower one of them"
        )


def run_rounds(plan: RoundsPlan, choose_concurrency: Callable[[], int], hours: float | None = None) -> dict[str, str]:
    """Runs what is missing of all rounds, one round of all strategies and seeds after the other.

    Returns what went wrong, by run. ``choose_concurrency`` is called once if a run is missing; after ``hours`` running trials
    are cut off, and the same command continues them. Raises UserError.
    """
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    manifest = read_manifest(plan.base.data.manifest, root=plan.base.data.root)
    trials: list[Trial] = []
    concurrent: list[int] = []

    def afford() -> Budget:
        concurrent[:] = concurrent or [choose_concurrency()]
        return Budget(concurrent[0], None if deadline is None else max(0.0, (deadline - time.monotonic()) / 3600))

    for number in range(plan.rounds + 1):
        new = [_prepare_trial(plan, manifest, number, cell, strategy, seed) for seed in plan.list_seeds()
               for strategy, cell in plan.list_cells(number)]  # fmt: skip
        trials += new
        print(f"round {number} of {plan.rounds}: {len(new)} runs", flush=True)
        study = Study(plan.name, QUESTION, {trial.cell: trial.values for trial in trials}, is_grid=False)
        problems = run_study(study, trials, plan.base, afford)
        if problems or not all(read_saved_progress(trial.config).is_done for trial in new):
            return problems
    return {}


def _prepare_trial(plan: RoundsPlan, manifest: Manifest, number: int, cell: str, strategy: Strategy | None, seed: int) -> Trial:
    """Writes the label subset of one run, unless it is there, and returns the trial."""
    path = _name_labels(plan, cell, seed)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        if strategy is None:
            write_labels(draw_labels(manifest, plan.start, seed), manifest, path)
        else:
            _label_suggested(plan, manifest, number, strategy, seed, path)
    labels = len(read_labels(path, manifest).rows)
    words = [f"run.storage_path={plan.folder}", f"run.name={cell}_seed-{seed}", f"run.seed={seed}", f"data.labels={path}"]
    config = override(plan.base.model_dump(mode="json"), words, source=f"rounds, {cell}")
    return Trial(cell, seed, config, {"strategy": strategy or START, "round": number, "number_of_labels": labels})


def _label_suggested(plan: RoundsPlan, manifest: Manifest, number: int, strategy: Strategy, seed: int, path: Path) -> None:
    """Lets the run of the round before choose videos, and writes its labels with the true classes of these."""
    cell = dict(plan.list_cells(number - 1)).get(strategy if number > 1 else None)
    assert cell is not None
    before = read_labels(_name_labels(plan, cell, seed), manifest)
    run = plan.folder / f"{cell}_seed-{seed}"
    predictions = None if plan.has_saved_scores else _predict_unlabeled(manifest, run, before)
    chosen, *_ = rank_candidates(run, Wish(plan.count, strategy, seed), predictions).choose(plan.count)
    rows = np.union1d(before.rows, chosen)
    spec = f"{plan.start} + {number} x {plan.count} {strategy}"
    write_labels(build_subset(manifest, rows, before.held_out, spec, seed), manifest, path)


def _predict_unlabeled(manifest: Manifest, run: Path, labels: LabelSubset) -> Path:
    """Predicts the unlabeled training videos by a finished run, unless that was done, and returns the table's path."""
    out = run / "unlabeled.parquet"
    if not out.is_file():
        saved = open_model(run, [], ())
        rows = set(np.setdiff1d(manifest.find_training_rows(), np.union1d(labels.rows, labels.held_out)).tolist())
        inputs = [video for video in list_inputs([str(manifest.path)], manifest.root) if video.row in rows]
        resources = plan_scoring(saved.config, len(inputs))
        prediction = PredictionRun(open_file_source(saved), saved.config, saved.weights, inputs, 1, resources, out)
        prediction.run(lambda index, rows: None)
    return out


def _name_labels(plan: RoundsPlan, cell: str, seed: int) -> Path:
    return plan.folder / "labels" / f"{cell}_seed-{seed}.parquet"


def _read_true_labels(manifest: Manifest, rows: np.ndarray) -> Sequence[int]:
    return [int(label) for label in manifest.table["label"].take(pa.array(rows, pa.int64())).to_pylist()]
