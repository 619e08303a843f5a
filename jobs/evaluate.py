"""``python -m jobs.evaluate RUN_FOLDER [key=value ...]``: accuracy and predictions of a run's newest checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, run
from pipeline.clips.source import Source, open_source
from pipeline.cluster import check_cluster, connect
from pipeline.config import Config, override
from pipeline.errors import UserError
from pipeline.evaluation.predict import evaluate
from pipeline.resources import Resources
from pipeline.run_folder import read_run
from pipeline.training import checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; only ``evaluation.*``, ``scale.*`` and ``data.root`` may be overridden."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__)
    arguments.add_argument("run_folder", type=Path)
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args(argv)
    source, config, newest, resources = open_evaluation(options.run_folder, options.overrides)
    step = checkpoint.read_facts(newest)["step"]
    summary = evaluate(source, config, newest / "model.safetensors", step, resources)
    for name in ("primary", "auxiliary", "mean"):
        print(f"{name:10} {summary[name]['top1']:.1%}")
    where = config.run_folder / "predictions.parquet"
    print(f"{summary['videos']} {config.evaluation.split} videos, step {step}; predictions: {where}")
    return DONE


def open_evaluation(run_folder: Path, overrides: Sequence[str]) -> tuple[Source, Config, Path, Resources | None]:
    """The data, configuration and newest checkpoint of a run, and what it reserves on the cluster, if it uses one."""
    folder = run_folder.resolve()
    foreign = [word for word in overrides if not word.startswith(("evaluation.", "scale.", "data.root="))]
    if foreign:
        raise UserError("only evaluation.*, scale.* and data.root can be overridden here:", foreign)
    old, _ = read_run(folder)
    config = override(old.model_dump(mode="json"), overrides, source=str(folder / "config.yaml"))
    config = override(
        config.model_dump(mode="json"), [f"run.storage_path={folder.parent}", f"run.name={folder.name}"], source="run folder"
    )
    newest, problems = checkpoint.newest(folder)
    if newest is None:
        raise UserError(f"{folder} has no whole checkpoint yet: run jobs.train first", problems)
    source, _ = open_source(config)
    resources = None
    if config.scale.workers:
        connect()
        resources = check_cluster(config)
    return source, config, newest, resources


if __name__ == "__main__":
    raise SystemExit(run(main))
