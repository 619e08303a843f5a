"""``python -m jobs.ablate STUDY --config FILE [--seeds N] [key=value ...]``: answer a question with many runs, in one table.

A study changes some keys of the configuration and trains a run for each value, with every seed. The same command again runs
only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.command import DONE, FAILED, add_configuration, check_hours, make_parser, run
from pipeline.analysis.records.run_progress import read_saved_progress
from pipeline.config import Config, load_config
from pipeline.errors import UserError, suggest
from pipeline.report.report import write_report
from pipeline.studies.ablation import (
    Trial,
    draw_subsets,
    drop_duplicates,
    find_study_folder,
    find_unfinished,
    plan_trials,
    run_study,
)
from pipeline.studies.cost import describe_time_left
from pipeline.studies.on_tune import choose_concurrency, estimate_concurrency
from pipeline.studies.study_file import Study, add_labels, read_study
from pipeline.studies.trials import Budget

STUDIES = Path(__file__).parent / "studies"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a study and prints its tables, which are also written as files and a page into the study's folder."""
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    options = build_parser(names).parse_intermixed_args(argv)
    check_hours(options.hours)
    if options.seeds < 1 or (options.concurrent is not None and options.concurrent < 1):
        raise UserError("--seeds and --concurrent must be at least 1")
    study = read_study(find_study(options.study, names))
    study = replace(study, name=options.name or study.name, cells=choose_cells(study, options.cells))
    if options.labels is not None:
        study = add_labels(study, options.labels)
    base = load_config(options.config, options.overrides).with_absolute_paths()
    trials, left_out = drop_duplicates(plan_trials(study, base, options.seeds))
    print("".join(f"{sentence}\n" for sentence in left_out), end="", flush=True)
    if options.dry_run:
        draw_subsets(trials, write=False)
        find_unfinished(trials)
        print_trials(study, trials, base, options.concurrent)
        return DONE
    budget = cache(lambda: Budget(choose_concurrency(base, options.concurrent), options.hours))
    if not all(read_saved_progress(trial.config).is_done for trial in trials):
        budget()  # that a trial does not fit is said before anything is written; where all are done no Ray is started
    problems = run_study(study, trials, base, budget)
    left = show_results(study, trials)
    for name, problem in problems.items():
        print(f"failed: {name}: {problem}")
    if left and not problems:
        print(f"{left} trials are left: the same command continues them")
    return FAILED if problems else DONE


def build_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Builds the parser of the command's arguments."""
    parser = make_parser("ablate", __doc__, "contrast_weight --config jobs/configs/demo.yaml --seeds 3")
    about = f"one of {', '.join(names)}, or the path of a YAML file with question and grid"
    parser.add_argument("study", metavar="STUDY", help=about)
    add_configuration(parser, required=True)
    runs = parser.add_argument_group("which runs")
    about = "train each setting N times, with the seeds run.seed, run.seed + 1, ... (default: 1)"
    runs.add_argument("--seeds", type=int, default=1, metavar="N", help=about)
    about = "draw so many labels anew for each seed, as jobs.label does (10%%, 2/class); for studies that do not draw labels"
    runs.add_argument("--labels", metavar="AMOUNT", help=about)
    about = "only these settings of the study; --dry-run lists runs as SETTING_seed-N"
    runs.add_argument("--cells", metavar="A,B", help=about)
    about = "name of the folder (default: the study's), to keep a second study with other overrides apart"
    runs.add_argument("--name", metavar="NAME", help=about)
    add_budget(parser, "list the runs, what is done and what the rest costs; train nothing")
    return parser


def add_budget(parser: argparse.ArgumentParser, dry_run: str | None = None) -> None:
    """Adds the group of options that studies and searches share, with ``--dry-run`` where it does what ``dry_run`` says."""
    budget = parser.add_argument_group("time and machines")
    about = "runs at once (default: as many as have a CPU, and a GPU, for each process)"
    budget.add_argument("--concurrent", type=int, metavar="N", help=about)
    budget.add_argument("--hours", type=float, metavar="H", help="stop after this time; the same command continues")
    if dry_run is not None:
        budget.add_argument("--dry-run", action="store_true", help=dry_run)


def find_study(word: str, names: Sequence[str]) -> Path:
    """Finds the file of a shipped study or the user's own. Raises UserError that suggests the nearest name."""
    path = Path(word)
    if word in names:
        return STUDIES / f"{word}.yaml"
    if path.is_file():
        return path
    raise UserError(f"no study {word}: use one of {', '.join(names)}{suggest(word, names)}")


def choose_cells(study: Study, names: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Returns the study's cells, or those whose comma-separated names are given. Raises UserError for an unknown name."""
    if names is None:
        return study.cells
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in study.cells:
            remedy = suggest(name, study.cells) or f"; it has {', '.join(study.cells)}"
            raise UserError(f"--cells: study {study.name} has no cell {name!r}{remedy}")
    return {name: values for name, values in study.cells.items() if name in chosen}


def print_trials(study: Study, trials: Sequence[Trial], base: Config, concurrent: int | None) -> None:
    """Prints each trial, how far its run is, and what the rest will cost."""
    for trial in trials:
        print(f"{read_saved_progress(trial.config)!s:12} {trial.config.run.name}")
    configs = [trial.config for trial in trials]
    print(f"{len(trials)} trials in {find_study_folder(study.name, base)}")
    folders = [config.run_folder for config in configs]
    print(describe_time_left(configs, estimate_concurrency(base, concurrent), Path(base.run.storage_path), folders))


def show_results(study: Study, trials: Sequence[Trial]) -> int:
    """Prints the tables, and writes the page and the tables into the study's folder. Returns how many trials are left."""
    finished = sum(read_saved_progress(trial.config).is_done for trial in trials)
    if finished:
        report = write_report([trials[0].config.run_folder.parent])
        print(f"{study.question}\n\n{report.table}\n\n{finished} of {len(trials)} trials\n{report.path}")
    return len(trials) - finished


if __name__ == "__main__":
    raise SystemExit(run(main))
