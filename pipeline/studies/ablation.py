"""Ablations: a grid of configuration keys x seeds, each cell an ordinary run, by Ray Tune.

A trial is named after what it changes, and its run folder says whether it is done. So the study has no state of its own:
the same command again runs what is missing and continues what was cut off.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.tune
import yaml

from pipeline.cluster import check_cluster, connect
from pipeline.config import Config, override, parse_config
from pipeline.errors import UserError
from pipeline.run_folder import write_text
from pipeline.studies.run import complete, evaluated
from pipeline.training.fit import prepare


@dataclass(frozen=True)
class Study:
    """A question and the cells that answer it: all combinations of a grid, or named cases."""

    name: str
    question: str
    cells: Mapping[str, Mapping[str, Any]]
    """By name, the dotted configuration keys that each changes."""
    is_grid: bool
    """Whether all cells change the same keys, which then are the table's columns."""


@dataclass(frozen=True)
class Trial:
    """One cell with one seed."""

    cell: str
    seed: int
    config: Config
    """Complete; its run folder lies in the study's folder."""


def read_study(path: Path) -> Study:
    """Read a study's YAML: ``question``, and ``grid`` (values of each key; cells are all combinations) or ``cases`` (keys
    and values by name, where one choice needs several keys). Raises UserError naming file and field."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"study {path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or set(tree) not in ({"question", "grid"}, {"question", "cases"}):
        raise UserError(f"study {path} needs exactly the fields question and grid, or question and cases")
    question, grid, cases = str(tree["question"]), tree.get("grid"), tree.get("cases")
    if "cases" in tree:
        if not isinstance(cases, dict) or not cases or not all(isinstance(values, dict) for values in cases.values()):
            raise UserError(f"study {path}: cases must give a mapping of configuration keys to values for each name")
        return Study(path.stem, question, cases, is_grid=False)
    if not isinstance(grid, dict) or not grid or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"study {path}: grid must give a list of values for each configuration key")
    cells = [dict(zip(grid, cell, strict=True)) for cell in itertools.product(*grid.values())]
    names = ["_".join(f"{key.split('.')[-1]}-{value}" for key, value in cell.items()) for cell in cells]
    return Study(path.stem, question, dict(zip(names, cells, strict=True)), is_grid=True)


def plan_trials(study: Study, base: Config, seeds: int) -> list[Trial]:
    """All cells x seeds, each checked. Raises UserError with all mistakes of a cell at once."""
    folder = f"{base.run.storage_path}/{study.name}"
    trials = []
    for seed in range(base.run.seed, base.run.seed + seeds):
        for cell, values in study.cells.items():
            words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
            words += [f"run.storage_path={folder}", f"run.name={cell}_seed-{seed}", f"run.seed={seed}"]
            trials.append(Trial(cell, seed, override(base.model_dump(mode="json"), words, source=f"study {study.name}")))
    return trials


def run_study(study: Study, trials: Sequence[Trial], concurrent: int) -> list[str]:
    """Run what is missing, ``concurrent`` trials at once; returns what went wrong, a line per trial.

    Everything that can be wrong with any trial's input raises UserError before the first one starts.
    """
    prepared = [prepare(trial.config) for trial in trials]
    missing = [trial for trial, ready in zip(trials, prepared, strict=True) if evaluated(ready) is None]
    if not missing:
        return []
    done = len(trials) - len(missing)
    print(f"{done} of {len(trials)} trials are done, {len(missing)} to run, {concurrent} at once", flush=True)
    if trials[0].config.scale.workers == 0:
        return _one_after_another(missing)
    connect()
    check_cluster(missing[0].config, concurrent)
    grid = ray.tune.grid_search([trial.config.with_absolute_paths().model_dump(mode="json") for trial in missing])
    tuner = ray.tune.Tuner(
        # the driver of a trial only waits: a whole CPU for it would leave none for its workers
        ray.tune.with_resources(_trial, {"CPU": 0.01}),
        param_space={"config": grid, "concurrent": concurrent},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=concurrent, trial_name_creator=_name, trial_dirname_creator=_name
        ),
        run_config=ray.tune.RunConfig(
            name=".tune", storage_path=str(Path(missing[0].config.with_absolute_paths().run.storage_path)), verbose=1
        ),
    )
    return [f"{result.path}: {result.error}" for result in tuner.fit() if result.error is not None]


def _name(trial: Any) -> str:
    return str(trial.config["config"]["run"]["name"])


def _trial(space: dict[str, Any]) -> None:
    """One trial, in a process of Tune: an ordinary run through the same TorchTrainer."""
    summary = complete(prepare(parse_config(space["config"])), space["concurrent"])
    ray.tune.report({name: summary[name]["top1"] for name in ("primary", "auxiliary", "mean")})


def _one_after_another(missing: Sequence[Trial]) -> list[str]:
    for number, trial in enumerate(missing, start=1):
        print(f"trial {number}/{len(missing)}: {trial.config.run.name}", flush=True)
        complete(prepare(trial.config))
    return []


def write_csv(path: Path, study: Study, trials: Sequence[Trial]) -> None:
    """One line per cell: its values, then mean and sd of the top-1 over seeds, in percent, and their number."""
    lines = []
    for cell, values in study.cells.items():
        folders = [trial.config.run_folder for trial in trials if trial.cell == cell]
        summaries = [json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) for folder in folders]
        line: dict[str, Any] = {**(values if study.is_grid else {"case": cell}), "n": len(summaries)}
        for view in ("primary", "auxiliary", "mean"):
            top1 = [100 * summary[view]["top1"] for summary in summaries]
            line[view] = round(statistics.mean(top1), 3) if top1 else ""
            line[f"{view}_sd"] = round(statistics.stdev(top1), 3) if len(top1) > 1 else ""
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
