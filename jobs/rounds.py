"""``python -m jobs.rounds --config FILE --rounds 5 --count 20 [key=value ...]``: find out which choice of videos to label
needs the fewest labels.

It simulates people on data whose labels are known: a run is trained, chooses videos, gets their hidden labels, and so on. The
same command again runs only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.ablate import add_budget
from jobs.command import DONE, FAILED, add_configuration, check_hours, make_parser, run
from pipeline.config import load_config
from pipeline.errors import UserError, suggest
from pipeline.labeling.rounds import RoundsPlan, check_plan, run_rounds
from pipeline.labeling.strategies import STRATEGIES, Strategy
from pipeline.report.report import write_report
from pipeline.run_folder.study_folder import read_trials
from pipeline.studies.cost import describe_time_left
from pipeline.studies.on_tune import choose_concurrency, estimate_concurrency


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates the rounds and prints their table, which is also on the page in the study's folder."""
    options = _build_parser().parse_intermixed_args(argv)
    check_hours(options.hours)
    for name in ("rounds", "count", "seeds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.concurrent is not None and options.concurrent < 1:
        raise UserError(f"--concurrent {options.concurrent} must be at least 1")
    base = load_config(options.config, options.overrides).with_absolute_paths()
    strategies = _read_strategies(options.strategies)
    plan = RoundsPlan(base, options.name, options.start, strategies, options.rounds, options.count, options.seeds)
    if not plan.has_saved_scores:
        if options.strategies is not None and "unstable" in strategies:
            raise UserError(
                "--strategies unstable: it chooses by the scores that training saves of unlabeled videos; set method.name to "
                "one that learns from them and train.save_scores_every above 0, or leave it out"
            )
        plan = replace(plan, strategies=tuple(name for name in strategies if name != "unstable"))
    check_plan(plan)
    if options.dry_run:
        each = [base] * plan.num_runs
        print(f"{plan.num_runs} runs in {plan.folder}: {', '.join(plan.strategies)}; {plan.rounds} rounds of {plan.count}")
        print(describe_time_left(each, estimate_concurrency(base, options.concurrent), Path(base.run.storage_path), []))
        return DONE
    problems = run_rounds(plan, lambda: choose_concurrency(base, options.concurrent), options.hours)
    if any(line["state"] == "complete" for line in read_trials(plan.folder)):
        report = write_report([plan.folder])
        print(report.table)
        print(report.path)
    for name, problem in problems.items():
        print(f"failed: {name}: {problem}")
    left = plan.num_runs - sum(line["state"] == "complete" for line in read_trials(plan.folder))
    if left > 0 and not problems:
        print(f"{left} runs are left: the same command continues them")
    return FAILED if problems else DONE


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "rounds", __doc__, "--config jobs/configs/actions.yaml --start 1/class --rounds 4 --count 20 --seeds 3"
    )
    add_configuration(parser, required=True)
    plan = parser.add_argument_group("the rounds")
    about = "how often videos are chosen, labeled and learned from"
    plan.add_argument("--rounds", type=int, required=True, metavar="N", help=about)
    plan.add_argument("--count", type=int, required=True, metavar="N", help="videos that are labeled in a round")
    plan.add_argument(
        "--start", default="1/class", metavar="N/class", help="labels before the first round (default: %(default)s)"
    )
    about = f"of {', '.join(STRATEGIES)} (default: all that the method has scores for); random always runs"
    plan.add_argument("--strategies", metavar="A,B", help=about)
    about = "who answers: the labels that the manifest has and training does not see (the only choice)"
    plan.add_argument("--oracle", choices=["hidden"], default="hidden", help=about)
    about = "simulate it N times, with the seeds run.seed, run.seed + 1, ... (default: 1)"
    plan.add_argument("--seeds", type=int, default=1, metavar="N", help=about)
    plan.add_argument("--name", default="rounds", metavar="NAME", help="of the study's folder (default: %(default)s)")
    add_budget(parser, "say how many runs there are and what they cost; train nothing")
    return parser


def _read_strategies(text: str | None) -> tuple[Strategy, ...]:
    """Reads the names, random first. Raises UserError for an unknown one."""
    names = STRATEGIES if text is None else [name.strip() for name in text.split(",")]
    known = {str(strategy): strategy for strategy in STRATEGIES}
    for name in names:
        if name not in known:
            remedy = suggest(name, STRATEGIES) or f"; write {', '.join(STRATEGIES)}"
            raise UserError(f"--strategies: {name!r} is not known{remedy}")
    return tuple(dict.fromkeys(["random", *(known[name] for name in names)]))


if __name__ == "__main__":
    raise SystemExit(run(main))
