"""What a search leaves in its folder for reports (study.json, trials.jsonl), and what it prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.search.optuna_search import Plan, Search
from pipeline.search.optuna_storage import runs
from pipeline.search.pbt import Member, Population

SHOWN = 10
STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


def objectives(plan: Plan) -> list[dict[str, str]]:
    """For study.json: accuracy under the name of the view that is judged, time as ``seconds``."""
    ways = zip(plan.objectives, plan.directions, strict=True)
    return [{"name": plan.metric if name == "accuracy" else "seconds", "direction": way} for name, way in ways]


def lines_of(study: optuna.Study, plan: Plan) -> list[dict[str, Any]]:
    """A line of trials.jsonl for each run; of one that was stopped on its way the last score."""
    return [_line(trial, plan) for trial in runs(study)]


def _line(trial: FrozenTrial, plan: Plan) -> dict[str, Any]:
    marks, names = trial.user_attrs, [one["name"] for one in objectives(plan)]
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
        "message": marks.get("error") or _lineage(marks.get("lineage") or []),
    }


def _lineage(parts: Sequence[dict[str, Any]]) -> str:
    return "" if len(parts) < 2 else f"copied from {parts[-2]['run']} at step {parts[-1]['from']}"


def trial_lines(search: Search) -> list[str]:
    """For the terminal: how many trials came to what, and the best."""
    own, plan = runs(search.study), search.plan
    counts = {state: sum(trial.state == state for trial in own) for state in TrialState}
    words = [f"{counts[TrialState.COMPLETE]} complete", f"{counts[TrialState.PRUNED]} stopped early"]
    words += [f"{counts[TrialState.FAIL]} failed"] if counts[TrialState.FAIL] else []
    words += [f"{counts[TrialState.RUNNING]} under way or cut off"] if counts[TrialState.RUNNING] else []
    lines = [f"{len(own)} of {plan.trials} trials: {', '.join(words)}"]
    for trial in best(search.study, own)[:SHOWN]:
        values = "  ".join(_value(name, value) for name, value in zip(plan.objectives, trial.values, strict=True))
        lines.append(f"{trial.user_attrs.get('run')}  {values}  {' '.join(search.space.words(trial.params))}")
    return lines


def best(study: optuna.Study, own: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, the best first; with two objectives those that no other one beats in both."""
    done = [trial for trial in own if trial.state == TrialState.COMPLETE]
    if len(study.directions) == 1:
        return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))
    numbers = {trial.number for trial in study.best_trials}
    return sorted((t for t in done if t.number in numbers), key=lambda trial: -trial.values[0])


def member_lines(population: Population, members: Sequence[Member]) -> list[str]:
    """For the terminal: the members by their last score, and the best one's schedule."""
    scored = [(member, score) for member in members if (score := population.score(member)) is not None]
    if not scored:
        return ["no member has come to its end yet"]
    lines = [f"{member.run}  {_value('accuracy', score[0])}" for member, score in scored[:SHOWN]]
    lines.append(f"the knobs of {scored[0][0].run} over its training:")
    for part in scored[0][0].lineage:
        until = part["until"] or population.base.train.steps
        lines.append(f"  steps {part['from']} to {until} ({part['run']}): {' '.join(population.space.words(part['params']))}")
    return lines


def next_command(plan: Plan, config_files: Sequence[str], words: Sequence[str]) -> str:
    """How the best is tried on test."""
    files = [word for file in config_files for word in ("--config", file)]
    return (
        f"its {plan.metric} on the validation videos is an upper guess, for it was selected by it; on test, once:\n"
        + shlex.join(["python", "-m", "jobs.train", *files, "run.name=best", *words])
    )


def _value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.0f} s"
