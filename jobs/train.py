"""``python -m jobs.train --config FILE [key=value ...]``: train a run and evaluate it; the same command continues it.

Results go to the folder run.storage_path/run.name, runs/NAME by default. ``jobs.report`` makes a page of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence

from jobs.command import DONE, FAILED, add_configuration, make_parser, parse_positive, run
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.evaluation.evaluation_summary import describe_lost_videos, describe_untested_classes
from pipeline.evaluation.protocol import describe_protocol
from pipeline.files.folder_lock import FolderNotWritable
from pipeline.hardware import choose_device
from pipeline.lifecycle.overfit import overfit
from pipeline.lifecycle.train_and_evaluate import complete_run, plan_run_resources, read_evaluation, train_up_to
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import lock_run
from pipeline.training import dry_run
from pipeline.training.gpu_memory import check_training
from pipeline.training.prepared_run import PreparedRun, prepare_run


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command's arguments."""
    parser = make_parser("train", __doc__, "--config jobs/configs/demo.yaml run.name=first train.steps=500")
    add_configuration(parser)
    part = parser.add_argument_group("a part of the run")
    about = "stop after step N, with a checkpoint; the same command without this option continues to the end"
    part.add_argument("--max-steps", metavar="N", type=parse_positive, help=about)
    about = "record some steps: a table of where their time goes, and a trace for Perfetto or chrome://tracing"
    part.add_argument("--profile", action="store_true", help=about)
    alone = parser.add_argument_group("instead of the run").add_mutually_exclusive_group()
    about = "check configuration and data, print steps, parameters and memory, and write nothing"
    alone.add_argument("--dry-run", action="store_true", help=about)
    about = "check that both networks can memorize N labeled videos; if not, something is wrong with data or setting"
    alone.add_argument("--overfit", metavar="N", type=parse_positive, help=about)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Checks everything, trains what is missing, evaluates, and prints where the results are."""
    options = build_parser().parse_intermixed_args(argv)
    config = load_config(options.config, options.overrides)
    if (options.dry_run or options.overfit) and (options.profile or options.max_steps):
        raise UserError("--dry-run and --overfit take neither --profile nor --max-steps")
    if options.overfit:
        return _overfit(config, options.overfit)
    if options.dry_run:
        return _dry_run(config)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(lock_run(config))
        except FolderNotWritable:
            if config.run_store is not None or not read_evaluation(prepared := prepare_run(config)):
                raise
            return _train(prepared, options)  # which only prints what is there
        return _train(prepare_run(config), options)


def _train(prepared: PreparedRun, options: argparse.Namespace) -> int:
    config = prepared.run.config
    show_notes(prepared)
    print(f"{describe_plan(prepared)}\nresults go to {prepared.run.folder}", flush=True)
    if options.profile:
        prepared = (prepared.stop_at(options.max_steps) if options.max_steps else prepared).with_profile()
    if options.max_steps is not None and options.max_steps < config.train.steps:
        return _train_part(prepared, options.max_steps)
    if prepared.is_finished:
        print(f"{config.run.name} is done: {config.train.steps} steps are trained", flush=True)
    summary = complete_run(prepared)
    accuracies = "  ".join(f"{name} {summary[name]['top1']:.1%}" for name in ("primary", "auxiliary", "mean"))
    split, videos = summary.get("split", "test"), summary["videos"]
    print(f"{split} top-1 after step {summary['step']} on {videos} videos: {accuracies} ({describe_protocol(summary)})")
    for note in filter(None, (describe_lost_videos(summary), describe_untested_classes(summary))):
        print(f"note: {note}")
    print(f"run folder: {prepared.run.folder}")
    folder, model = shlex.quote(str(prepared.run.folder)), shlex.quote(f"models/{config.run.name}")
    print(f"next     python -m jobs.report {folder}\n         python -m jobs.export {folder} {model}")
    return DONE


def _train_part(prepared: PreparedRun, step: int) -> int:
    reached = train_up_to(prepared, step)
    steps = prepared.run.config.train.steps
    print(f"at step {reached} of {steps}, with a checkpoint; the same command without --max-steps continues the run")
    print(f"run folder: {prepared.run.folder}")
    return DONE


def _overfit(config: Config, videos: int) -> int:
    result = overfit(config, videos)
    print("\n".join(result.format_lines()))
    return DONE if result.has_learned else FAILED


def _dry_run(config: Config) -> int:
    with tempfile.TemporaryDirectory() as folder:  # of an object store's run: another process may use its local copy now
        if config.run_store is not None:
            config = config.model_copy(update={"run": config.run.model_copy(update={"staging_path": folder})})
        return _show_dry_run(prepare_run(config, dry_run=True))


def _show_dry_run(prepared: PreparedRun) -> int:
    training = prepared.run
    show_notes(prepared)
    print(describe_plan(prepared), flush=True)
    print("\n".join(dry_run.describe_run(prepared)))
    bytes_by_purpose = dry_run.estimate_memory(training.config, training.plan, training.num_classes, training.file_labels)
    print("\n".join(dry_run.format_memory(bytes_by_purpose)), flush=True)
    # last: where there is no GPU a run for one can be planned, and then says that there is none
    description, resources = _describe_resources(prepared)
    print(description, flush=True)
    check_training(training, resources, sum(bytes_by_purpose.values()))
    return DONE


def _describe_resources(prepared: PreparedRun) -> tuple[str, Resources | None]:
    """Describes what the run reserves of the cluster, and returns it if there is one. Raises UserError if it does not fit."""
    if prepared.run.config.scale.workers == 0:
        device = "GPU" if choose_device(prepared.run.config).type == "cuda" else "CPU"
        return f"reserves: nothing, it runs in this process on the {device}", None
    from pipeline.ray_cluster.connect import is_reachable  # scale.workers=0 works where Ray is not installed

    if not is_reachable():
        if not os.environ.get("RAY_ADDRESS"):
            choose_device(prepared.run.config)
        description = "no Ray cluster answers; a run would start one on this machine, or join the one that RAY_ADDRESS names"
        return f"reserves: {description}", None
    resources = plan_run_resources(prepared.run.config)
    assert resources is not None
    worker = " and ".join(f"{amount:g} {kind}" for kind, amount in resources.worker.items())
    return f"reserves: {resources.workers} x {worker} to train, {resources.decoders}", resources


def show_notes(prepared: PreparedRun) -> None:
    """Prints on standard error what the user should know before the run starts."""
    for note in prepared.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)


def describe_plan(prepared: PreparedRun) -> str:
    """Describes in a line what a run will do: its steps, videos and workers."""
    plan, config = prepared.run.plan, prepared.run.config
    videos = plan.rows_per_step * plan.slots
    return (
        f"{config.run.name}: {config.method.name}, {config.train.steps} steps of {plan.rows_per_step} labeled + "
        f"{videos - plan.rows_per_step} unlabeled videos, "
        f"{plan.compute_epoch(config.train.steps * plan.rows_per_step):.1f} epochs of the "
        f"{'unlabeled' if plan.unlabeled_per_labeled else 'labeled'} ones; "
        f"{len(plan.labeled)} labeled, {len(plan.unlabeled)} unlabeled videos, {prepared.run.num_classes} classes; "
        f"workers {config.scale.workers or 'none (in this process)'}"
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
