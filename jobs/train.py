"""``python -m jobs.train --config FILE [key=value ...]``: train a run and evaluate it; the same command continues it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import DONE, run
from pipeline.config import load_config
from pipeline.studies.run import complete
from pipeline.training.fit import Prepared, prepare


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    arguments.add_argument("--config", metavar="FILE", help="YAML file of overrides; the defaults are the paper's setting")
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, for example train.steps=100")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, train what is missing, evaluate, say where the results are."""
    options = parser().parse_intermixed_args(argv)
    prepared = prepare(load_config(options.config, options.overrides))
    print(arithmetic(prepared), flush=True)
    if prepared.finished:
        print(f"{prepared.run.config.run.name} is done: {prepared.run.config.train.steps} steps are trained", flush=True)
    summary = complete(prepared)
    accuracies = "  ".join(f"{name} {summary[name]['top1']:.1%}" for name in ("primary", "auxiliary", "mean"))
    print(f"test top-1 after step {summary['step']} on {summary['videos']} videos: {accuracies}")
    print(f"run folder: {prepared.run.folder}")
    return DONE


def arithmetic(prepared: Prepared) -> str:
    """The derived quantities of a run, before it starts."""
    plan, config = prepared.run.plan, prepared.run.config
    videos = plan.rows_per_step * plan.slots
    return (
        f"{config.run.name}: {config.method.name}, {config.train.steps} steps of {plan.rows_per_step} labeled + "
        f"{videos - plan.rows_per_step} unlabeled videos, {plan.epoch(config.train.steps * plan.rows_per_step):.1f} epochs; "
        f"{len(plan.labeled)} labeled, {len(plan.unlabeled)} unlabeled videos, {prepared.run.num_classes} classes; "
        f"workers {config.scale.workers or 'none (in this process)'}"
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
