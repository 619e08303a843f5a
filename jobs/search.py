"""``python -m jobs.search --config FILE --space SPACE --trials N [--hours H] [key=value ...]``: find good values of knobs.

Each trial is a run with other values, judged on held-out labeled videos, never on test. The same command continues the search,
tonight or tomorrow.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from jobs.ablate import add_budget
from jobs.command import DONE, FAILED, add_configuration, check_hours, make_parser, run
from pipeline.config import Config, load_config, override
from pipeline.errors import UserError, suggest
from pipeline.files.folder_lock import lock_file
from pipeline.report.report import write_report
from pipeline.run_folder.contents import flatten
from pipeline.run_folder.study_folder import STUDY_FACTS, write_study_facts, write_trials
from pipeline.search.optuna_search import Search, SearchPlan, name_run
from pipeline.search.optuna_storage import build_sqlite_url, hide_password, list_run_trials, open_study, warm_start
from pipeline.search.pbt import Population, check_space, draw_first_members, read_member_names
from pipeline.search.search_summary import (
    build_test_command,
    build_trial_lines,
    format_members,
    format_trials,
    list_objectives,
    sort_best_trials,
)
from pipeline.search.space import Space, draw, read_space
from pipeline.studies.ablation import find_study_folder
from pipeline.studies.cost import describe_time_left
from pipeline.studies.on_tune import choose_concurrency, estimate_concurrency
from pipeline.studies.run_trials import run_jobs
from pipeline.studies.trials import Budget
from pipeline.training.prepared_run import prepare_run

SPACES = Path(__file__).parent / "spaces"
ALGORITHMS = ("tpe", "random", "asha", "hyperband", "pbt")


@dataclass(frozen=True)
class SearchRequest:
    """A command that was checked."""

    options: argparse.Namespace
    space: Space
    plan: SearchPlan
    base: Config
    """The base configuration: its storage_path is the search's folder, and it is evaluated on validation videos."""
    interval: int
    """The number of steps between two decisions of pbt."""

    @property
    def name(self) -> str:
        """The name of the search, of its folder and of its study."""
        return self.folder.name

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return Path(self.base.run.storage_path)

    @property
    def url(self) -> str:
        """The URL of the database."""
        return self.options.storage or build_sqlite_url(self.folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Searches until the study has its trials or the time is over, and shows the best."""
    begun = time.monotonic()
    names = sorted(path.stem for path in SPACES.glob("*.yaml"))
    request = read_request(build_parser(names).parse_intermixed_args(argv), names)
    if request.options.dry_run:
        return dry_run(request)
    setting = check_data(request)
    study = open_study(request.url, request.name, request.plan.directions, setting)
    left = is_unfinished(request, study)
    budget = Budget(1, None)
    if left:  # choose_concurrency may start a cluster
        budget = Budget(choose_concurrency(request.base, request.options.concurrent), request.options.hours)
    write_study_facts(request.folder, describe_search(request))
    for where in request.options.warm_start:
        print(warm_start(study, request.space, request.url, where, request.folder), flush=True)
    at_once = f"{budget.concurrent} at once" if left else "nothing is left to run"
    print(f"{request.name}: {len(list_run_trials(study))} trials are begun, {at_once}", flush=True)
    if request.options.algorithm == "pbt":
        problems = run_population(request, study, budget, begun)
    else:
        problems = run_search(request, study, budget)
    _write_trials(request, study)
    if list(request.folder.glob("*/config.yaml")):
        print(write_report([request.folder]).path)
    for problem in problems:
        print(f"failed: {problem}")
    return FAILED if problems else DONE


def is_unfinished(request: SearchRequest, study: optuna.Study) -> bool:
    """Returns whether a trial has not begun or not ended yet."""
    if request.options.algorithm == "pbt":
        return bool(read_member_names(request.folder, request.plan.trials, request.base.train.steps))
    begun = [trial for trial in list_run_trials(study) if trial.state != TrialState.WAITING]
    return len(begun) < request.plan.trials or not all(trial.state.is_finished() for trial in begun)


def _write_trials(request: SearchRequest, study: optuna.Study) -> None:
    write_trials(request.folder, build_trial_lines(study, request.plan))


def run_search(request: SearchRequest, study: optuna.Study, budget: Budget) -> list[str]:
    """Runs random search, TPE, ASHA or HyperBand. Returns what went wrong."""
    source = Search(study, request.space, request.plan, request.base, partial(_write_trials, request, study))
    run_jobs(source, request.base, budget)
    source.release_claims()
    print("\n".join([request.space.question, "", *format_trials(source)]))
    if winners := sort_best_trials(study, list_run_trials(study)):
        words = [*request.space.build_overrides(winners[0].params), *request.options.overrides]
        print(build_test_command(request.plan, request.options.config, words))
    return source.problems


def run_population(request: SearchRequest, study: optuna.Study, budget: Budget, begun: float) -> list[str]:
    """Runs population-based training, in one process at a time because the members wait for each other. Returns what went
    wrong."""
    population = Population(study, request.space, request.base, request.plan.trials, request.interval, request.plan.metric,
                            partial(_write_trials, request, study))  # fmt: skip
    remedy = "the members of a population wait for each other: let that search end, or stop it"
    with lock_file(request.folder / ".population.lock", f"the population in {request.folder}", remedy=remedy):
        members, problems = population.run(budget, lambda: (time.monotonic() - begun) / 3600)
    print("\n".join([request.space.question, "", *format_members(population, members)]))
    return problems


# ----------------------------------------------------------------------------------------------------- the command line


def build_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Builds the parser of the command's arguments."""
    parser = make_parser("search", __doc__, "--config jobs/configs/demo.yaml --space rates --trials 20 --hours 2")
    add_configuration(parser, required=True)
    add = parser.add_argument_group("what is searched").add_argument
    about = f"knobs and their ranges: one of {', '.join(names)}, or the path of a YAML file"
    add("--space", metavar="SPACE", required=True, help=about)
    add("--trials", type=int, required=True, metavar="N", help="runs of the search in all, over all nights; pbt: its members")
    about = "who judges a run: the validation accuracy of one network, or of their mean (default: mean)"
    add("--metric", choices=("primary", "auxiliary", "mean"), default="mean", help=about)
    about = "what is sought: accuracy (default), or accuracy and time, the seconds of training"
    add("--objectives", nargs="+", choices=("accuracy", "time"), default=["accuracy"], help=about)
    add = parser.add_argument_group("how it is searched").add_argument
    about = "tpe: Bayesian, all knobs together (default); random; asha and hyperband: runs that are behind stop early; pbt: "
    about += "population-based training, in which good runs are copied"
    add("--algorithm", choices=ALGORITHMS, default="tpe", help=about)
    about = "asha, hyperband: steps after which a run is judged first (default: a 27th of train.steps)"
    add("--min-steps", type=int, metavar="STEPS", help=about)
    add("--reduction", type=int, default=3, metavar="ETA", help="asha, hyperband: one of ETA runs continues (default: 3)")
    add("--interval", type=int, metavar="STEPS", help="pbt: steps between two decisions (default: a tenth of train.steps)")
    add("--warm-start", nargs="+", default=[], metavar="SEARCH", help="earlier searches to learn from: folders, or names")
    add = parser.add_argument_group("where it is kept").add_argument
    add("--name", metavar="NAME", help="of the search and its folder (default: the space's, and the algorithm's for pbt)")
    add("--storage", metavar="URL", help="database (default: study.db in the folder; or postgresql+psycopg://...)")
    add_budget(parser, "check all and say what is there and what the rest costs; train nothing")
    return parser


def read_request(options: argparse.Namespace, names: Sequence[str]) -> SearchRequest:
    """Checks the command against the configuration; nothing is written. Raises UserError."""
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
    words = [f"run.storage_path={find_study_folder(name, base)}", "evaluation.split=validation"]
    base = override(base.model_dump(mode="json"), words, source="search")
    plan = SearchPlan("random" if pbt else options.algorithm, options.trials, tuple(options.objectives), options.metric,
                options.min_steps, options.reduction)  # fmt: skip
    return SearchRequest(options, space, plan, base, options.interval or -(-base.train.steps // 10))


def find_space(word: str, names: Sequence[str]) -> Path:
    """Finds the file of a shipped space or the user's own. Raises UserError that suggests the nearest name."""
    if word in names:
        return SPACES / f"{word}.yaml"
    if Path(word).is_file():
        return Path(word)
    raise UserError(f"no space {word}: use one of {', '.join(names)}{suggest(word, names)}")


def check_data(request: SearchRequest) -> dict[str, Any]:
    """Checks the data as the trials will, and returns the setting that all trials of the study share. Raises UserError."""
    prepared = prepare_run(build_sample_config(request, 0.5))
    for note in prepared.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    prepared.run.source.find_evaluation_rows("validation")
    searched = request.space.distributions
    knobs = {key: value for key, value in flatten(request.base.collect_result_knobs()).items() if key not in searched}
    protocol = request.base.evaluation
    extra: dict[str, Any] = (
        {"population": request.plan.trials, "interval": request.interval} if request.options.algorithm == "pbt" else {}
    )
    extra |= {"file_labels": prepared.run.fingerprints.file_labels} if prepared.run.fingerprints.file_labels else {}
    return {
        **knobs, **extra, "space": dict(request.space.tree),
        "metric": request.plan.metric, "objectives": list(request.plan.objectives),
        "evaluation.clips": protocol.clips, "evaluation.crops": protocol.crops,
        "manifest": prepared.run.fingerprints.manifest, "labels": prepared.run.fingerprints.labels,
    }  # fmt: skip


def build_sample_config(request: SearchRequest, chance: float) -> Config:
    """Builds the configuration of a run at some point of the space, to check what all trials share; it is never trained."""
    params = {key: draw(distribution, chance) for key, distribution in request.space.distributions.items()}
    words = [*request.space.build_overrides(params), "run.name=check"]
    return override(request.base.model_dump(mode="json"), words, source="search")


def describe_search(request: SearchRequest) -> dict[str, Any]:
    """Describes the search for study.json."""
    options = request.options
    return {
        "name": request.name, "kind": "search", "question": request.space.question, "objectives": list_objectives(request.plan),
        "space": dict(request.space.tree), "algorithm": options.algorithm, "trials": request.plan.trials,
        "steps": request.base.train.steps, "storage": hide_password(request.url),
    }  # fmt: skip


def dry_run(request: SearchRequest) -> int:
    """Prints what would be run."""
    setting = check_data(request)
    there = (request.folder / STUDY_FACTS).is_file()
    begun = list_run_trials(open_study(request.url, request.name, request.plan.directions, setting)) if there else []
    if request.options.algorithm == "pbt":
        members = draw_first_members(request.space, request.plan.trials, request.base.run.seed)
        print("\n".join(f"{member.run_name}  {' '.join(request.space.build_overrides(member.params))}" for member in members))
        print(f"a decision every {request.interval} of {request.base.train.steps} steps")
        names = read_member_names(request.folder, request.plan.trials, request.base.train.steps)
    else:
        stops = request.plan.list_stops(request.base.train.steps)
        print(f"{request.plan.trials} trials by {request.plan.algorithm}, scored at {', '.join(map(str, stops))}")
        under_way = [name_run(trial.number) for trial in begun if not trial.state.is_finished()]
        names = [*under_way, *["not begun"] * (request.plan.trials - len(begun))]
    print(f"{request.folder}: {'continues' if there else 'new'}; at most, if no trial is stopped early:")
    configs = [request.base.model_copy(update={"run": request.base.run.model_copy(update={"name": name})}) for name in names]
    known = sorted(path.parent for path in request.folder.glob("*/metrics.jsonl"))
    concurrent = estimate_concurrency(request.base, request.options.concurrent)
    print(describe_time_left(configs, concurrent, request.folder.parent, known))
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
