"""``python -m jobs.evaluate RUN_FOLDER [key=value ...]``: accuracy and predictions of a run's newest checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, run
from pipeline.clips.source import open_source
from pipeline.cluster import check_cluster, connect
from pipeline.config import override
from pipeline.errors import UserError
from pipeline.evaluation.predict import evaluate
from pipeline.run_folder import read_run
from pipeline.training import checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; only ``evaluation.*``, ``scale.*`` and ``data.root`` may be overridden."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__)
    arguments.add_argument("run_folder", type=Path)
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args(argv)
    folder = options.run_folder.resolve()
    foreign = [word for word in options.overrides if not word.startswith(("evaluation.", "scale.", "data.root="))]
    if foreign:
        raise UserError("only evaluation.*, scale.* and data.root can be overridden here:", foreign)
    old, _ = read_run(folder)
    config = override(old.model_dump(mode="json"), options.overrides, source=str(folder / "config.yaml"))
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
    step = checkpoint.read_facts(newest)["step"]
    summary = evaluate(source, config, newest / "model.safetensors", step, resources)
    for name in ("primary", "auxiliary", "mean"):
        print(f"{name:10} {summary[name]['top1']:.1%}")
    print(f"{summary['videos']} {config.evaluation.split} videos, step {step}; predictions: {folder / 'predictions.parquet'}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
