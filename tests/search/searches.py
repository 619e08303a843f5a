"""Searches whose trials' scores are made up. Imports little, because processes of tests import this module to join in."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from pipeline.config import load_config
from pipeline.search.optuna_search import Search, SearchPlan
from pipeline.search.optuna_storage import open_study
from pipeline.search.space import Space, read_space

RANGES = """question: q
space:
  primary.optimizer.lr: {low: 0.01, high: 0.5, log: true}
  method.confidence_threshold: {low: 0.5, high: 0.95}
"""


def space_of(folder: Path, text: str) -> Space:
    (folder / "space.yaml").write_text(text, encoding="utf-8")
    return read_space(folder / "space.yaml", load_config())


def make(
    url: str, folder: Path, text: str, trials: int, name: str = "", setting: dict[str, Any] | None = None, **plan: Any
) -> Search:
    """A search in ``folder``, whose name is the study's, for the server is shared by tests."""
    order = SearchPlan(plan.pop("algorithm", "random"), trials, **plan)
    study = open_study(url, name or folder.name, order.directions, setting or {"data": 1})
    base = load_config(overrides=[f"run.storage_path={folder}", "train.steps=90"])
    return Search(study, space_of(folder, text), order, base)


def quality(config: Any) -> float:
    """The better the nearer the threshold is to 0.8."""
    return 1.0 - abs(config.method.confidence_threshold - 0.8)


def drive(search: Search, most: int = 1000) -> list[str]:
    """Run trials as the engine does; their names."""
    names = []
    while len(names) < most and (job := search.next_job()) is not None:
        names.append(job.name)
        for step in job.stops:
            scores = {"mean": quality(job.config) * step / 90, "seconds": float(step)}
            if not search.report_scores(job, step, scores):
                break
        search.report_end(job, None)
    return names


def drive_from_barrier(url: str, folder: str, trials: int, start: Barrier) -> None:
    """Runs trials of a search once others are at the barrier, too, and writes their names to ``driven``."""
    search = make(url, Path(folder), RANGES, trials)
    start.wait(90)
    for name in drive(search):
        with (Path(folder) / "driven").open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
