"""``python -m jobs.search --config FILE --space SPACE --trials N [--hours H] [key=value ...]``: find good knobs.

Trials are judged on held-out labeled videos, never on test. The same command continues the search, tonight or tomorrow.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from jobs.ablate import add_budget
from jobs.command import DONE, FAILED, add_config, check_hours, run
from pipeline.analysis.run_reader import flatten
from pipeline.config import Config, load_config, override
from pipeline.errors import UserError, suggest
from pipeline.files.folder_lock import lock_file
from pipeline.report.report import write_report
from pipeline.run_folder.study_folder import ABOUT, write_about, write_trials
from pipeline.search.optuna_search import Plan, Search, run_name
from pipeline.search.optuna_storage import hidden, open_study, runs, sqlite_url, warm_start
from pipeline.search.pbt import Population, check_space, first_members, places
from pipeline.search.search_summary import best, lines_of, member_lines, next_command, objectives, trial_lines
from pipeline.search.space import Space, draw, read_space
from pipeline.studies.ablation import study_folder
from pipeline.studies.cost import estimate
from pipeline.studies.on_tune import likely_share, share
from pipeline.studies.run_trials import run_jobs
from pipeline.studies.trials import Budget
from pipeline.training.prepared_run import prepare

SPACES = Path(__file__).parent / "spaces"
ALGORITHMS = ("tpe", "random", "asha", "hyperband", "pbt")


@dataclass(frozen=True)
class Order:
    """A checked command."""

    options: argparse.Namespace
    space: Space
    plan: Plan
    base: Config
    """Its storage_path is the search's folder; it is evaluated on validation videos."""
    interval: int
    """Steps between two decisions of pbt."""

    @property
    def name(self) -> str:
        """Of the search, its folder and its study."""
        return self.folder.name

    @property
    def folder(self) -> Path:
        """The search's."""
        return Path(self.base.run.storage_path)

    @property
    def url(self) -> str:
        """Of the storage."""
        return self.options.storage or sqlite_url(self.folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Search until the study has its trials or the time is over; show the best."""
    begun = time.monotonic()
    names = sorted(path.stem for path in SPACES.glob("*.yaml"))
    order = read_order(parser(names).parse_intermixed_args(argv), names)
    if order.options.dry_run:
        return dry_run(order)
    setting = check(order)
    study = open_study(order.url, order.name, order.plan.directions, setting)
    left = something_is_left(order, study)
    # to ask for a share of the cluster starts one
    budget = Budget(share(order.base, order.options.concurrent), order.options.hours) if left else Budget(1, None)
    write_about(order.folder, facts(order))
    for where in order.options.warm_start:
        print(warm_start(study, order.space, order.url, where, order.folder), flush=True)
    at_once = f"{budget.concurrent} at once" if left else "nothing is left to run"
    print(f"{order.name}: {len(runs(study))} trials are begun, {at_once}", flush=True)
    problems = evolve(order, study, budget, begun) if order.options.algorithm == "pbt" else search(order, study, budget)
    write_trials(order.folder, lines_of(study, order.plan))
    if list(order.folder.glob("*/config.yaml")):
        print(write_report([order.folder]).path)
    for problem in problems:
        print(f"failed: {problem}")
    return FAILED if problems else DONE


def something_is_left(order: Order, study: optuna.Study) -> bool:
    """Whether a trial is still to be begun or to be ended."""
    if order.options.algorithm == "pbt":
        return bool(places(order.folder, order.plan.trials, order.base.train.steps))
    begun = [trial for trial in runs(study) if trial.state != TrialState.WAITING]
    return len(begun) < order.plan.trials or not all(trial.state.is_finished() for trial in begun)


def search(order: Order, study: optuna.Study, budget: Budget) -> list[str]:
    """Random, TPE, ASHA or HyperBand."""
    source = Search(study, order.space, order.plan, order.base, lambda: write_trials(order.folder, lines_of(study, order.plan)))
    run_jobs(source, order.base, budget)
    source.let_go()
    print("\n".join([order.space.question, "", *trial_lines(source)]))
    if winners := best(study, runs(study)):
        words = [*order.space.words(winners[0].params), *order.options.overrides]
        print(next_command(order.plan, order.options.config, words))
    return source.problems


def evolve(order: Order, study: optuna.Study, budget: Budget, begun: float) -> list[str]:
    """Population-based training; one process at a time, for its members wait for each other."""
    population = Population(study, order.space, order.base, order.plan.trials, order.interval, order.plan.metric,
                            lambda: write_trials(order.folder, lines_of(study, order.plan)))  # fmt: skip
    remedy = "the members of a population wait for each other: let that search end, or stop it"
    with lock_file(order.folder / ".population.lock", f"the population in {order.folder}", remedy=remedy):
        members, problems = population.run(budget, lambda: (time.monotonic() - begun) / 3600)
    print("\n".join([order.space.question, "", *member_lines(population, members)]))
    return problems


# ----------------------------------------------------------------------------------------------------- the command line


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Arguments of the command."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.search", description=__doc__)
    add = arguments.add_argument
    add_config(arguments, required=True)
    add("--space", metavar="SPACE", required=True, help=f"one of {', '.join(names)}, or the path of a YAML file")
    add("--trials", type=int, required=True, metavar="N", help="trials of the study in all, over all nights; pbt: its members")
    add("--algorithm", choices=ALGORITHMS, default="tpe", help="default: tpe, multivariate")
    add("--objectives", nargs="+", choices=("accuracy", "time"), default=["accuracy"], help="time: seconds of training")
    add("--metric", choices=("primary", "auxiliary", "mean"), default="mean", help="whose validation top-1 (default: mean)")
    add("--name", help="of the search and its folder (default: the space's, and the algorithm's for pbt)")
    add("--storage", metavar="URL", help="database of the study (default: study.db in its folder; postgresql+psycopg://...)")
    add("--warm-start", nargs="+", default=[], metavar="SEARCH", help="earlier searches to learn from: folders, or names")
    add("--min-steps", type=int, metavar="STEPS", help="first rung of asha and hyperband (default: a 27th of train.steps)")
    add("--reduction", type=int, default=3, metavar="ETA", help="one of ETA trials goes on from a rung (default: 3)")
    add("--interval", type=int, metavar="STEPS", help="steps between two decisions of pbt (default: a tenth of train.steps)")
    add_budget(arguments)
    add("--dry-run", action="store_true", help="check all and say what is there and what the rest costs; start nothing")
    add("overrides", nargs="*", metavar="key=value")
    return arguments


def read_order(options: argparse.Namespace, names: Sequence[str]) -> Order:
    """The command, checked against the configuration; nothing is written. Raises UserError."""
    check_hours(options.hours)
    base = load_config(options.config, options.overrides).with_absolute_paths()
    file = find_space(options.space, names)
    space = read_space(file, base)
    pbt = options.algorithm == "pbt"
    numbers = {"--trials": options.trials, "--concurrent": options.concurrent, "--min-steps": options.min_steps,
               "--interval": options.interval}  # fmt: skip
    wrong = [f"{name} must be above 0" for name, number in numbers.items() if number is not None and number <= 0]
    wrong += ["--reduction must be at least 2"] if options.reduction < 2 else []
    wrong += ["--objectives must begin with accuracy"] if options.objectives not in (["accuracy"], ["accuracy", "time"]) else []
    if len(options.objectives) > 1 and options.algorithm not in ("tpe", "random"):
        wrong.append(f"--algorithm {options.algorithm} judges by accuracy alone; two objectives need tpe or random")
    if pbt and options.trials == 1:
        wrong.append("--algorithm pbt needs a population of two at least: --trials 2")
    if wrong:
        raise UserError("this search cannot be:", wrong)
    if pbt:
        check_space(space)
    name = options.name or file.stem + ("_pbt" if pbt else "")
    words = [f"run.storage_path={study_folder(name, base)}", "evaluation.split=validation"]
    base = override(base.model_dump(mode="json"), words, source="search")
    plan = Plan("random" if pbt else options.algorithm, options.trials, tuple(options.objectives), options.metric,
                options.min_steps, options.reduction)  # fmt: skip
    return Order(options, space, plan, base, options.interval or -(-base.train.steps // 10))


def find_space(word: str, names: Sequence[str]) -> Path:
    """A shipped space's file or the user's own. Raises UserError with the nearest name."""
    if word in names:
        return SPACES / f"{word}.yaml"
    if Path(word).is_file():
        return Path(word)
    raise UserError(f"no space {word}: use one of {', '.join(names)}{suggest(word, names)}")


def check(order: Order) -> dict[str, Any]:
    """Look at the data as the trials will; the setting that all trials of the study share. Raises UserError."""
    prepared = prepare(trial_at(order, 0.5))
    for note in prepared.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    prepared.source.evaluated("validation")
    knobs = {key: value for key, value in flatten(order.base.result_knobs()).items() if key not in order.space.distributions}
    protocol = order.base.evaluation
    extra = {"population": order.plan.trials, "interval": order.interval} if order.options.algorithm == "pbt" else {}
    return {
        **knobs, **extra, "space": dict(order.space.tree),
        "metric": order.plan.metric, "objectives": list(order.plan.objectives),
        "evaluation.clips": protocol.clips, "evaluation.crops": protocol.crops,
        "manifest": prepared.run.prints.manifest, "labels": prepared.run.prints.labels,
    }  # fmt: skip


def trial_at(order: Order, chance: float) -> Config:
    """A trial's run somewhere in the space, to look at what all share; it is never made."""
    params = {key: draw(distribution, chance) for key, distribution in order.space.distributions.items()}
    words = [*order.space.words(params), "run.name=check"]
    return override(order.base.model_dump(mode="json"), words, source="search")


def facts(order: Order) -> dict[str, Any]:
    """For study.json."""
    options = order.options
    return {
        "name": order.name, "kind": "search", "question": order.space.question, "objectives": objectives(order.plan),
        "space": dict(order.space.tree), "algorithm": options.algorithm, "trials": order.plan.trials,
        "steps": order.base.train.steps, "storage": hidden(order.url),
    }  # fmt: skip


def dry_run(order: Order) -> int:
    """Say what would be run."""
    setting = check(order)
    there = (order.folder / ABOUT).is_file()
    begun = runs(open_study(order.url, order.name, order.plan.directions, setting)) if there else []
    if order.options.algorithm == "pbt":
        members = first_members(order.space, order.plan.trials, order.base.run.seed)
        print("\n".join(f"{member.run}  {' '.join(order.space.words(member.params))}" for member in members))
        print(f"a decision every {order.interval} of {order.base.train.steps} steps")
        names = places(order.folder, order.plan.trials, order.base.train.steps)
    else:
        stops = order.plan.stops(order.base.train.steps)
        print(f"{order.plan.trials} trials by {order.plan.algorithm}, scored at {', '.join(map(str, stops))}")
        under_way = [run_name(trial.number) for trial in begun if not trial.state.is_finished()]
        names = [*under_way, *["not begun"] * (order.plan.trials - len(begun))]
    print(f"{order.folder}: {'continues' if there else 'new'}; at most, if no trial is stopped early:")
    configs = [order.base.model_copy(update={"run": order.base.run.model_copy(update={"name": name})}) for name in names]
    known = sorted(path.parent for path in order.folder.glob("*/metrics.jsonl"))
    print(estimate(configs, likely_share(order.base, order.options.concurrent), order.folder.parent, known))
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
