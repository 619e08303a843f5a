"""``python -m jobs.ablate STUDY --config FILE [--seeds N] [key=value ...]``: one question, many runs, one table.

The same command again runs only what is missing.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, FAILED, run
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.studies.ablation import Study, Trial, plan_trials, read_study, run_study, write_csv
from pipeline.studies.report import write_report

STUDIES = Path(__file__).parent / "studies"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and print its table; also as CSV and HTML in the study's folder."""
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    arguments = argparse.ArgumentParser(prog="python -m jobs.ablate", description=__doc__)
    arguments.add_argument("study", help=f"one of {', '.join(names)}, or the path of a YAML file with question and grid")
    arguments.add_argument("--config", metavar="FILE", required=True)
    arguments.add_argument("--seeds", type=int, default=1, help="runs of each cell, with seeds run.seed, run.seed + 1, ...")
    arguments.add_argument("--concurrent", type=int, default=2, help="trials at once (default: 2)")
    arguments.add_argument("--dry-run", action="store_true", help="list the trials and what is done, and stop")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args(argv)
    if options.seeds < 1 or options.concurrent < 1:
        raise UserError("--seeds and --concurrent must be at least 1")
    study = read_study(find_study(options.study, names))
    base = load_config(options.config, options.overrides).with_absolute_paths()
    trials = plan_trials(study, base, options.seeds)
    if options.dry_run:
        list_trials(trials)
        return DONE
    problems = run_study(study, trials, options.concurrent)
    show(study, trials)
    for problem in problems:
        print(f"failed: {problem}")
    return FAILED if problems else DONE


def find_study(word: str, names: Sequence[str]) -> Path:
    """A shipped study's file or the user's own. Raises UserError with the nearest name."""
    path = Path(word)
    if word in names:
        return STUDIES / f"{word}.yaml"
    if path.is_file():
        return path
    near = difflib.get_close_matches(word, names, n=1)
    raise UserError(f"no study {word}: use one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else ""))


def list_trials(trials: Sequence[Trial]) -> None:
    """Print each trial and whether its run folder holds an evaluation."""
    for trial in trials:
        done = (trial.config.run_folder / "evaluation.json").is_file()
        print(f"{'done   ' if done else 'missing'}  {trial.config.run.name}")


def show(study: Study, trials: Sequence[Trial]) -> None:
    """Print the table; write ``table.csv`` and ``report.html`` into the study's folder."""
    folder = Path(trials[0].config.run.storage_path)
    evaluated = [trial for trial in trials if (trial.config.run_folder / "evaluation.json").is_file()]
    if not evaluated:
        return
    page = write_report([trial.config.run_folder for trial in evaluated], folder / "report.html")
    write_csv(folder / "table.csv", study, evaluated)
    print(f"{study.question}\n\n{page.table}\n\n{len(evaluated)} of {len(trials)} trials; {folder / 'table.csv'}\n{page.path}")


if __name__ == "__main__":
    raise SystemExit(run(main))
