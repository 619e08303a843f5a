"""``python -m jobs.ablate STUDY --config FILE [--seeds N] [key=value ...]``: one question, many runs, one table.

The same command again runs only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.command import DONE, FAILED, add_config, check_hours, run
from pipeline.config import Config, load_config
from pipeline.errors import UserError, suggest
from pipeline.report.report import write_report
from pipeline.studies.ablation import Trial, distinct, draw_subsets, plan_trials, run_study, study_folder, unfinished
from pipeline.studies.cost import estimate, state_of
from pipeline.studies.on_tune import likely_share, share
from pipeline.studies.study_file import Study, read_study
from pipeline.studies.trials import Budget

STUDIES = Path(__file__).parent / "studies"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and print its tables; also as files and a page in the study's folder."""
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    options = parser(names).parse_intermixed_args(argv)
    check_hours(options.hours)
    if options.seeds < 1 or (options.concurrent is not None and options.concurrent < 1):
        raise UserError("--seeds and --concurrent must be at least 1")
    study = read_study(find_study(options.study, names))
    study = replace(study, name=options.name or study.name, cells=choose_cells(study, options.cells))
    base = load_config(options.config, options.overrides).with_absolute_paths()
    trials, left_out = distinct(plan_trials(study, base, options.seeds))
    print("".join(f"{sentence}\n" for sentence in left_out), end="", flush=True)
    if options.dry_run:
        draw_subsets(trials, write=False)
        unfinished(trials)
        list_trials(study, trials, base, options.concurrent)
        return DONE
    budget = cache(lambda: Budget(share(base, options.concurrent), options.hours))
    if not all(state_of(trial.config).done for trial in trials):
        budget()  # that a trial does not fit is said before anything is written; where all are done no Ray is started
    problems = run_study(study, trials, base, budget)
    left = show(study, trials)
    for name, problem in problems.items():
        print(f"failed: {name}: {problem}")
    if left and not problems:
        print(f"{left} trials are left: the same command continues them")
    return FAILED if problems else DONE


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Arguments of the command."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.ablate", description=__doc__)
    arguments.add_argument("study", help=f"one of {', '.join(names)}, or the path of a YAML file with question and grid")
    add_config(arguments, required=True)
    arguments.add_argument("--name", help="of the study's folder (default: the study's), for other overrides beside the first")
    arguments.add_argument("--seeds", type=int, default=1, help="runs of each cell, with seeds run.seed, run.seed + 1, ...")
    arguments.add_argument("--cells", metavar="A,B", help="only these cells: a trial is named CELL_seed-N")
    add_budget(arguments)
    arguments.add_argument("--dry-run", action="store_true", help="list the trials, what is done and what the rest costs; stop")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    return arguments


def add_budget(arguments: argparse.ArgumentParser) -> None:
    """The options that studies and searches share."""
    help_text = "trials at once (default: as many as have a CPU, and a GPU, for each process)"
    arguments.add_argument("--concurrent", type=int, metavar="N", help=help_text)
    arguments.add_argument("--hours", type=float, metavar="H", help="stop after this time; the same command continues")


def find_study(word: str, names: Sequence[str]) -> Path:
    """A shipped study's file or the user's own. Raises UserError with the nearest name."""
    path = Path(word)
    if word in names:
        return STUDIES / f"{word}.yaml"
    if path.is_file():
        return path
    raise UserError(f"no study {word}: use one of {', '.join(names)}{suggest(word, names)}")


def choose_cells(study: Study, names: str | None) -> Mapping[str, Mapping[str, Any]]:
    """The study's cells, or those of them whose names are given, with commas between. Raises UserError for an unknown name."""
    if names is None:
        return study.cells
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in study.cells:
            remedy = suggest(name, study.cells) or f"; it has {', '.join(study.cells)}"
            raise UserError(f"--cells: study {study.name} has no cell {name!r}{remedy}")
    return {name: values for name, values in study.cells.items() if name in chosen}


def list_trials(study: Study, trials: Sequence[Trial], base: Config, concurrent: int | None) -> None:
    """Print each trial, how far its run is, and what the rest will cost."""
    for trial in trials:
        print(f"{state_of(trial.config)!s:12} {trial.config.run.name}")
    configs = [trial.config for trial in trials]
    print(f"{len(trials)} trials in {study_folder(study.name, base)}")
    folders = [config.run_folder for config in configs]
    print(estimate(configs, likely_share(base, concurrent), Path(base.run.storage_path), folders))


def show(study: Study, trials: Sequence[Trial]) -> int:
    """Print the tables; write the page and the tables into the study's folder. Returns how many trials are left."""
    finished = sum(state_of(trial.config).done for trial in trials)
    if finished:
        report = write_report([trials[0].config.run_folder.parent])
        print(f"{study.question}\n\n{report.table}\n\n{finished} of {len(trials)} trials\n{report.path}")
    return len(trials) - finished


if __name__ == "__main__":
    raise SystemExit(run(main))
