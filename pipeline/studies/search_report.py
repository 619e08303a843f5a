"""What a search leaves in its folder for people and pages: search.json, trials.json, trials.csv, and a table to print."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.run_folder import write_text
from pipeline.studies.population import Member, Population
from pipeline.studies.search import Plan, Search
from pipeline.studies.storage import ABOUT, runs

SHOWN = 10


def write_about(folder: Path, facts: dict[str, Any], study: optuna.Study) -> None:
    """``search.json``: what is searched, how and where, and each knob's share of what the scores' spread is due to."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ABOUT, json.dumps({"kind": "search", **facts, "importance": importance(study)}, indent=1))


def importance(study: optuna.Study) -> dict[str, float]:
    """By knob, adding up to 1 (PED-ANOVA, for the first objective); empty with few trials or one knob."""
    done = [trial for trial in runs(study) if trial.state == TrialState.COMPLETE]
    if len(done) < 4 or len({trial.values[0] for trial in done}) < 2:
        return {}
    target = None if len(study.directions) == 1 else lambda trial: trial.values[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it is new
        return optuna.importance.get_param_importances(study, target=target)


def write_trials(folder: Path, study: optuna.Study) -> None:
    """``trials.json`` with all that is known of each trial, and ``trials.csv`` with its knobs and results."""
    trials = [describe(trial) for trial in runs(study)]
    write_text(folder / "trials.json", json.dumps(trials, indent=1))
    lines = [
        {"number": t["number"], "run": t["run"], "state": t["state"], **t["params"],
         **{f"value_{place}": value for place, value in enumerate(t["values"])}, "step": t["step"], "seconds": t["seconds"]}
        for t in trials
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for line in lines for name in line)))
    writer.writeheader()
    writer.writerows(lines)
    write_text(folder / "trials.csv", text.getvalue())


def describe(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as JSON: its last score stands in ``values`` too if it was stopped on its way."""
    marks = trial.user_attrs
    values = list(trial.values or []) or ([trial.intermediate_values[trial.last_step]] if trial.last_step is not None else [])
    return {
        "number": trial.number,
        "run": marks.get("run"),
        "state": trial.state.name.lower(),
        "params": dict(trial.params),
        "values": values,
        "scored": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "step": marks.get("step", trial.last_step),
        "seconds": (marks.get("scores") or {}).get("seconds"),
        "scores": marks.get("scores"),
        "error": marks.get("error"),
        "lineage": marks.get("lineage"),
        "started": trial.datetime_start.isoformat() if trial.datetime_start else None,
        "ended": trial.datetime_complete.isoformat() if trial.datetime_complete else None,
    }


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


def next_command(plan: Plan, config_file: str, words: Sequence[str]) -> str:
    """How the best is tried on test."""
    return (
        f"its {plan.metric} on the validation videos is an upper guess, for it was selected by it; on test, once:\n"
        f"python -m jobs.train --config {config_file} run.name=best {' '.join(words)}"
    )


def _value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.0f} s"
