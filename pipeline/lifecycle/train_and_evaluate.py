"""One ordinary run: to its end with its accuracies, as jobs.train does it, or to a step on its way, as searches do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.predict import evaluate, needs_cluster, score
from pipeline.hardware import own_device
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import lock_run, read_metrics, write_text
from pipeline.training.checkpoints import checkpoint
from pipeline.training.gpu_memory import check_training
from pipeline.training.in_process import fit_here
from pipeline.training.prepared_run import Prepared

VIEWS = ("primary", "auxiliary", "mean")
SCORES = "scores.jsonl"
"""File of a run folder: a line for each step at which ``advance`` stopped."""


def complete(prepared: Prepared, concurrent: int = 1) -> dict[str, Any]:
    """Train what is missing, evaluate if that is missing; returns evaluation.json's content.

    ``concurrent`` runs share the cluster. Raises UserError before anything starts if the run does not fit, or if another
    process writes its folder.
    """
    summary = evaluated(prepared)
    if summary:
        return summary
    resources = reserve_to_train(prepared, concurrent)
    with lock_run(prepared.run.config):
        weights, step = _train(prepared, resources)
        summary = evaluate(prepared.source, prepared.run.config, weights, step, resources)
        if prepared.run.store is not None:
            run_store.push_files(prepared.run.folder, prepared.run.store)
    return summary


def train_up_to(prepared: Prepared, step: int) -> int:
    """Train up to ``step``, as if cut there, and evaluate nothing; returns the step that the run is at. Raises UserError."""
    if prepared.step >= step:
        return prepared.step
    part = prepared.up_to(step)
    resources = reserve_to_train(part)
    with lock_run(prepared.run.config):
        if prepared.step < step:
            _train(part, resources)
    return prepared.step


def advance(prepared: Prepared, step: int, concurrent: int = 1) -> dict[str, float]:
    """Train up to ``step`` and score the configured split there: top-1 of each view, 0..1, the mean
    probability of the true class (probability/VIEW), and seconds of training so far.

    The run goes on from there as if it had not stopped. At the last step this is ``complete``. What was scored before is
    read from the run folder's scores.jsonl. Raises UserError.
    """
    with lock_run(prepared.run.config):
        return _advance(prepared, step, concurrent)


def _advance(prepared: Prepared, step: int, concurrent: int) -> dict[str, float]:
    folder = prepared.run.folder
    last = step >= prepared.run.config.train.steps
    known = next((line for line in read_scores(folder) if line["step"] == step), None)
    if last or known is None:
        summary = complete(prepared, concurrent) if last else _score_at(prepared.up_to(step), concurrent)
        known = {"step": step, **{view: summary[view]["top1"] for view in VIEWS}}
        known |= {f"probability/{view}": summary[view].get("true_probability") or 0.0 for view in VIEWS}
        known["seconds"] = training_seconds(folder, step)
        lines = [line for line in read_scores(folder) if line["step"] != step]
        write_text(folder / SCORES, "".join(json.dumps(line) + "\n" for line in [*lines, known]))
    return {name: value for name, value in known.items() if name != "step"}


def _score_at(prepared: Prepared, concurrent: int) -> dict[str, Any]:
    resources = reserve_to_train(prepared, concurrent)
    weights, reached = _train(prepared, resources)
    if reached != prepared.run.end:
        folder = prepared.run.folder
        raise UserError(f"{folder} is at step {reached} and was not scored at {prepared.run.end}: delete it to run it again")
    return score(prepared.source, prepared.run.config, weights, resources)[0]


def _train(prepared: Prepared, resources: Resources | None) -> tuple[Path, int]:
    """Weights at the run's end, and its step; trained unless they are there."""
    prepared.open()
    if prepared.step < prepared.run.end:
        _fit(prepared, resources)
    newest, problems = checkpoint.newest(prepared.run.folder, prepared.run.store)
    if newest is None:
        raise UserError(f"{prepared.run.folder} holds no whole checkpoint", problems)
    return newest / "model.safetensors", checkpoint.read_facts(newest)["step"]


def _fit(prepared: Prepared, resources: Resources | None) -> None:
    if resources is None:
        fit_here(prepared)
    else:
        from pipeline.training.on_ray.trainer import fit_on_ray  # scale.workers=0 works where Ray is not installed

        fit_on_ray(prepared, resources)


def reserve(config: Config, concurrent: int = 1) -> Resources | None:
    """What a run reserves of the cluster, which is joined or started; None for scale.workers=0, which needs no Ray.

    Raises UserError if it does not fit, and for a GPU or a compiler that is wanted and cannot be used.
    """
    if config.scale.workers == 0:
        own_device(config)
        return None
    from pipeline.ray_cluster.connect import check_cluster, connect

    connect()
    return check_cluster(config, concurrent)


def reserve_to_score(config: Config, videos: int) -> Resources | None:
    """``reserve`` for scores of so many videos; None too where they are so few that this process scores them sooner."""
    return reserve(config) if needs_cluster(config, videos) else None


def reserve_to_train(prepared: Prepared, concurrent: int = 1) -> Resources | None:
    """``reserve``, and UserError if training would lack memory of the GPU or a compiler; nothing is written before."""
    resources = reserve(prepared.run.config, concurrent)
    if prepared.step < prepared.run.end:
        check_training(prepared.run, resources)
    return resources


def evaluated(prepared: Prepared) -> dict[str, Any] | None:
    """The evaluation by the configured protocol, if the run is trained to its end and it is there."""
    config = prepared.run.config
    path = prepared.run.folder / "evaluation.json"
    if not prepared.finished or not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    protocol = config.evaluation
    wanted = {"step": config.train.steps, "clips": protocol.clips, "crops": protocol.crops, "split": protocol.split}
    own = summary.get("data", {}).get("fingerprint", prepared.run.prints.manifest) == prepared.run.prints.manifest
    return summary if own and all(summary.get(key) == value for key, value in wanted.items()) else None


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Lines of scores.jsonl: ``step``, and what ``advance`` returned there."""
    path = folder / SCORES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def training_seconds(folder: Path, step: int) -> float:
    """Time of training up to ``step``, from metrics.jsonl: pauses, restarts and evaluations do not count."""
    seconds, before = 0.0, 0
    for line in read_metrics(folder):
        if line["step"] <= step:
            seconds += (line["step"] - before) * line["seconds/step"]
            before = line["step"]
    return seconds
