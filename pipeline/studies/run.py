"""One ordinary run from configuration to accuracies: what jobs.train does, and what every trial of a study does."""

from __future__ import annotations

import json
from typing import Any

from pipeline import run_store
from pipeline.cluster import check_cluster, connect
from pipeline.errors import UserError
from pipeline.evaluation.predict import evaluate
from pipeline.resources import Resources
from pipeline.training import checkpoint
from pipeline.training.fit import Prepared, fit_here
from pipeline.training.ray_fit import fit_on_ray


def complete(prepared: Prepared, concurrent: int = 1) -> dict[str, Any]:
    """Train what is missing, evaluate if that is missing; returns evaluation.json's content.

    ``concurrent`` runs share the cluster. Raises UserError before anything starts if the run does not fit.
    """
    summary = evaluated(prepared)
    if summary:
        return summary
    resources = reserve(prepared, concurrent)
    prepared.open()
    if not prepared.finished:
        _ = fit_here(prepared) if resources is None else fit_on_ray(prepared, resources)
    newest, problems = checkpoint.newest(prepared.run.folder, prepared.run.store)
    if newest is None:
        raise UserError(f"{prepared.run.folder} holds no whole checkpoint", problems)
    step = checkpoint.read_facts(newest)["step"]
    summary = evaluate(prepared.source, prepared.run.config, newest / "model.safetensors", step, resources)
    if prepared.run.store is not None:
        run_store.push_files(prepared.run.folder, prepared.run.store)
    return summary


def reserve(prepared: Prepared, concurrent: int = 1) -> Resources | None:
    """What the run reserves of the cluster, which is joined or started; None for scale.workers=0."""
    if prepared.run.config.scale.workers == 0:
        return None
    connect()
    return check_cluster(prepared.run.config, concurrent)


def evaluated(prepared: Prepared) -> dict[str, Any] | None:
    """The evaluation by the configured protocol, if the run is trained to its end and it is there."""
    config = prepared.run.config
    path = prepared.run.folder / "evaluation.json"
    if not prepared.finished or not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    protocol = config.evaluation
    wanted = {"step": config.train.steps, "clips": protocol.clips, "crops": protocol.crops, "split": protocol.split}
    return summary if all(summary.get(key) == value for key, value in wanted.items()) else None
