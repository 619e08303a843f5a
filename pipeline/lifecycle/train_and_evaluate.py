"""Trains one run: to its end, with an evaluation, as jobs.train does, or to a step on its way, as searches do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import evaluate, evaluate_split
from pipeline.evaluation.protocol import is_of_finished_run
from pipeline.evaluation.score_videos import is_worth_cluster
from pipeline.hardware import choose_device
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import PREDICTORS, lock_run, read_metrics, write_text
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import parse_step
from pipeline.training.gpu_memory import check_training
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import PreparedRun

SCORES = "scores.jsonl"
"""The file of a run folder that has a line for each step at which ``advance`` stopped."""


def complete_run(prepared: PreparedRun, concurrent: int = 1) -> dict[str, Any]:
    """Trains what is missing, then evaluates if that is missing; returns the content of evaluation.json.

    ``concurrent`` is the number of runs that share the cluster. Raises UserError before anything starts if the run does not
    fit, or if another process writes its folder.
    """
    summary = read_evaluation(prepared)
    if summary:
        return summary
    resources = plan_training(prepared, concurrent)
    with lock_run(prepared.run.config):
        weights, step = newest = _train(prepared, resources)
        if prepared.run.config.evaluation.checkpoint == "best":
            weights, step = checkpoint.find_best_weights(prepared.run.folder, prepared.run.store)
        summary = evaluate(prepared.run.source, prepared.run.config, weights, step, resources, trained_steps=newest[1])
        if prepared.run.store is not None:
            run_store.push_files(prepared.run.folder, prepared.run.store)
    return summary


def train_up_to(prepared: PreparedRun, step: int) -> int:
    """Trains up to ``step`` without evaluation, as if the run had been stopped there. Returns the step that the run is at.

    Raises UserError.
    """
    if prepared.step >= step:
        return prepared.step
    part = prepared.stop_at(step)
    resources = plan_training(part)
    with lock_run(prepared.run.config):
        return _train(part, resources)[1]


def advance(prepared: PreparedRun, step: int, concurrent: int = 1) -> dict[str, float]:
    """Trains up to ``step`` and evaluates the configured split there: for each of ``PREDICTORS`` its top-1 accuracy in 0..1
    and, as ``probability/PREDICTOR``, the mean probability of the true class; and ``seconds`` of training so far.

    The run goes on from there as if it had not stopped. At the last step it is completed by ``complete_run``. What was
    evaluated before is read from the run folder's scores.jsonl. Raises UserError.
    """
    with lock_run(prepared.run.config):
        return _advance(prepared, step, concurrent)


def _advance(prepared: PreparedRun, step: int, concurrent: int) -> dict[str, float]:
    folder = prepared.run.folder
    last = step >= prepared.run.config.train.steps
    known = next((line for line in read_scores(folder) if line["step"] == step), None)
    if last or known is None:
        summary = complete_run(prepared, concurrent) if last else _evaluate_at(prepared.stop_at(step), concurrent)
        known = {"step": step, **{predictor: summary[predictor]["top1"] for predictor in PREDICTORS}}
        known |= {f"probability/{predictor}": summary[predictor].get("true_probability") or 0.0 for predictor in PREDICTORS}
        known["seconds"] = sum_training_seconds(folder, step)
        lines = [line for line in read_scores(folder) if line["step"] != step]
        write_text(folder / SCORES, "".join(json.dumps(line) + "\n" for line in [*lines, known]))
    return {name: value for name, value in known.items() if name != "step"}


def _evaluate_at(prepared: PreparedRun, concurrent: int) -> dict[str, Any]:
    resources = plan_training(prepared, concurrent)
    weights, reached = _train(prepared, resources)
    if reached != prepared.run.end:
        folder = prepared.run.folder
        raise UserError(f"{folder} is at step {reached} and was not evaluated at {prepared.run.end}: delete it to run it again")
    return evaluate_split(prepared.run.source, prepared.run.config, weights, resources)[0]


def _train(prepared: PreparedRun, resources: Resources | None) -> tuple[Path, int]:
    """Trains what is missing up to ``run.end``; returns the newest checkpoint's weights and step."""
    prepared.create_folder()
    newest, problems = prepared.newest, list[str]()
    if prepared.step < prepared.run.end:
        _fit(prepared, resources)
        newest, problems = checkpoint.find_newest(prepared.run.folder, prepared.run.store)
    if newest is None:
        raise UserError(f"{prepared.run.folder} holds no whole checkpoint", problems)
    return newest / "model.safetensors", parse_step(newest.name)


def _fit(prepared: PreparedRun, resources: Resources | None) -> None:
    if resources is None:
        fit_in_process(prepared)
    else:
        from pipeline.training.on_ray.trainer import fit_on_ray  # scale.workers=0 works where Ray is not installed

        fit_on_ray(prepared, resources)


def plan_run_resources(config: Config, concurrent: int = 1) -> Resources | None:
    """Joins or starts a cluster and plans what a run will take of it; None for scale.workers=0, which needs no Ray.

    Raises UserError if it does not fit, and for a GPU or a compiler that is wanted and cannot be used.
    """
    if config.scale.workers == 0:
        choose_device(config)
        return None
    from pipeline.ray_cluster.connect import check_cluster, connect

    connect()
    return check_cluster(config, concurrent)


def plan_scoring(config: Config, num_videos: int) -> Resources | None:
    """Plans, as ``plan_run_resources`` does, what scoring ``num_videos`` takes; None also if they are so few that this process
    is done sooner."""
    return plan_run_resources(config) if is_worth_cluster(config, num_videos) else None


def plan_training(prepared: PreparedRun, concurrent: int = 1) -> Resources | None:
    """Plans, as ``plan_run_resources`` does, what training takes.

    Raises UserError, before anything is written, also if training would lack GPU memory or a compiler.
    """
    resources = plan_run_resources(prepared.run.config, concurrent)
    if prepared.step < prepared.run.end:
        check_training(prepared.run, resources)
    return resources


def read_evaluation(prepared: PreparedRun) -> dict[str, Any] | None:
    """Reads the run's evaluation; None if the run is not trained to its end, or not evaluated by the configured protocol."""
    config = prepared.run.config
    path = prepared.run.folder / "evaluation.json"
    if not prepared.is_finished or not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    manifest = prepared.run.fingerprints.manifest
    is_own = summary.get("data", {}).get("fingerprint", manifest) == manifest
    return summary if is_own and is_of_finished_run(summary, config) else None


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of scores.jsonl: ``step``, and what ``advance`` returned there."""
    path = folder / SCORES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def sum_training_seconds(folder: Path, step: int) -> float:
    """Adds up the seconds of training up to ``step`` from metrics.jsonl; pauses, restarts and evaluations do not count."""
    seconds, before = 0.0, 0
    for line in read_metrics(folder):
        if line["step"] <= step:
            seconds += (line["step"] - before) * line["seconds/step"]
            before = line["step"]
    return seconds
