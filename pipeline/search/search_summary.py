"""What a search leaves in its folder for reports (study.json, trials.jsonl), and what it prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Config
from pipeline.evaluation.protocol import collect_protocol, describe_protocol
from pipeline.search.optuna_search import Search, SearchPlan, build_trial_config
from pipeline.search.optuna_storage import list_run_trials
from pipeline.search.pbt import Member, Population

SHOWN = 10
STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


def list_objectives(plan: SearchPlan) -> list[dict[str, str]]:
    """Lists the objectives for study.json: accuracy under the name of the predictor, and time as ``seconds``."""
    ways = zip(plan.objectives, plan.directions, strict=True)
    return [{"name": plan.metric if name == "accuracy" else "seconds", "direction": way} for name, way in ways]


def build_trial_lines(study: optuna.Study, plan: SearchPlan) -> list[dict[str, Any]]:
    """Builds a line of trials.jsonl for each run, with the last score if the run was stopped early."""
    return [_build_line(trial, plan) for trial in list_run_trials(study)]


def _build_line(trial: FrozenTrial, plan: SearchPlan) -> dict[str, Any]:
    marks, names = trial.user_attrs, [one["name"] for one in list_objectives(plan)]
    last = trial.last_step
    known = list(trial.values or []) or ([] if last is None else [trial.intermediate_values[last]])
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "params": dict(trial.params),
        "values": dict(zip(names, [*known, *[None] * (len(names) - len(known))], strict=True)),
        "seconds": (marks.get("scores") or {}).get("seconds"),
        "step": marks.get("step", last),
        "run_folder": marks.get("run"),
        "message": marks.get("error") or _describe_lineage(marks.get("lineage") or []),
    }


def _describe_lineage(parts: Sequence[dict[str, Any]]) -> str:
    return "" if len(parts) < 2 else f"copied from {parts[-2]['run']} at step {parts[-1]['from']}"


def format_trials(search: Search) -> list[str]:
    """Formats for the terminal how many trials are complete, stopped or failed, and the best ones."""
    own, plan = list_run_trials(search.study), search.plan
    counts = {state: sum(trial.state == state for trial in own) for state in TrialState}
    words = [f"{counts[TrialState.COMPLETE]} complete", f"{counts[TrialState.PRUNED]} stopped early"]
    words += [f"{counts[TrialState.FAIL]} failed"] if counts[TrialState.FAIL] else []
    words += [f"{counts[TrialState.RUNNING]} under way or cut off"] if counts[TrialState.RUNNING] else []
    lines = [f"{len(own)} of {plan.trials} trials: {', '.join(words)}"]
    shown = sort_best_trials(search.study, own)[:SHOWN]
    for trial in shown:
        values = "  ".join(_format_value(name, value) for name, value in zip(plan.objectives, trial.values, strict=True))
        lines.append(f"{trial.user_attrs.get('run')}  {values}  {' '.join(search.space.build_overrides(trial.params))}")
    configs = [build_trial_config(search.base, search.space, trial.number, trial.params) for trial in shown]
    return [*lines, *_list_protocols(configs, plan.metric)]


def sort_best_trials(study: optuna.Study, own: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Sorts the complete trials, the best first; with two objectives only those of the Pareto front."""
    done = [trial for trial in own if trial.state == TrialState.COMPLETE]
    if len(study.directions) == 1:
        return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))
    numbers = {trial.number for trial in study.best_trials}
    return sorted((t for t in done if t.number in numbers), key=lambda trial: -trial.values[0])


def format_members(population: Population, members: Sequence[Member]) -> list[str]:
    """Formats for the terminal the members by their last scores, and the values of the best one over its training."""
    scored = [(member, score) for member in members if (score := population.read_score(member)) is not None]
    if not scored:
        return ["no member has come to its end yet"]
    lines = [f"{member.run_name}  {_format_value('accuracy', score[0])}" for member, score in scored[:SHOWN]]
    lines += _list_protocols([population.build_config(member) for member, _ in scored[:SHOWN]], population.metric)
    lines.append(f"the knobs of {scored[0][0].run_name} over its training:")
    for part in scored[0][0].lineage:
        until = part["until"] or population.base.train.steps
        words = population.space.build_overrides(part["params"])
        lines.append(f"  steps {part['from']} to {until} ({part['run']}): {' '.join(words)}")
    return lines


def _list_protocols(configs: Sequence[Config], metric: str) -> list[str]:
    """Lists how the accuracies above were measured, a line for each protocol."""
    phrases = dict.fromkeys(describe_protocol({"protocol": collect_protocol(config)}) for config in configs)
    return [f"top-1 of {metric}: {phrase}" for phrase in phrases]


def build_test_command(plan: SearchPlan, config_files: Sequence[str], words: Sequence[str]) -> str:
    """Builds the command that trains the best configuration and evaluates it on the test videos."""
    files = [word for file in config_files for word in ("--config", file)]
    return (
        f"its {plan.metric} on the validation videos is optimistic, for the configuration was selected by it; on test, once:\n"
        + shlex.join(["python", "-m", "jobs.train", *files, "run.name=best", *words])
    )


def _format_value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.0f} s"
