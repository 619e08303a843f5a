"""Population-based training (Jaderberg et al., 2017): members train side by side; the worst copy the best and change a little.

At every interval the lowest quarter of the members by validation accuracy (ties: by the mean probability of the true
class, for small validation sets tie often) each copy a member of the highest quarter - both
students, both optimizers, label statistics - and perturb its knobs. A copy is a run folder of its own that starts from the
copied checkpoint and records its lineage, because a run's configuration must be what it was trained with.

All decisions are functions of (seed, interval, scores), and scores are in the run folders: a killed search that is started
again decides the same and runs what is missing. Tune's PBT keeps its decisions in the driver and is asynchronous, so that a
killed search cannot be continued to the same end; hence this one, with Tune to run the members.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from pipeline.config import Config, marked_keys, override
from pipeline.errors import UserError
from pipeline.lifecycle.train_and_evaluate import read_scores
from pipeline.run_folder.contents import lock_run, write_text
from pipeline.search.optuna_storage import runs
from pipeline.search.space import Space, clip, draw
from pipeline.seeds import uniform
from pipeline.studies.run_trials import run_jobs
from pipeline.studies.trials import ORPHAN_SECONDS, Budget, Job
from pipeline.training.checkpoints import checkpoint
from pipeline.training.prepared_run import prepare

Score: TypeAlias = tuple[float, float]
"""Top-1 and mean probability of the true class, 0..1."""
FAILED: Score = (-math.inf, -math.inf)
QUARTER = 0.25
RESAMPLE = 0.25
"""Chance of a knob to be drawn anew instead of perturbed."""
FACTORS = (0.8, 1.2)
FILE = "population.json"


@dataclass(frozen=True)
class Member:
    """A place in the population and the run that has it now."""

    number: int
    params: Mapping[str, Any]
    start: int = 0
    """Step from which on these knobs hold."""
    parent: Member | None = None
    """Whose checkpoint at ``start`` was copied."""

    @property
    def run(self) -> str:
        """Name of the run."""
        return f"member-{self.number:02d}" + (f"_from-{self.start:06d}" if self.start else "")

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """From the first ancestor on: run, the step it was copied at, and its knobs."""
        before = [] if self.parent is None else self.parent.lineage
        if before and self.parent is not None:
            before[-1]["until"] = self.start
        return [*before, {"run": self.run, "from": self.start, "until": None, "params": dict(self.params)}]


def check_space(space: Space) -> None:
    """Raises UserError naming keys that cannot change in the middle of a run."""
    allowed = marked_keys(Config(), "mid_run")
    fixed = [key for key in space.distributions if not key.startswith(tuple(allowed))]
    if fixed:
        what = f"--algorithm pbt changes knobs in the middle of a run, which {', '.join(fixed)} cannot; it can search"
        raise UserError(f"{what} {', '.join(f'{key}*' if key.endswith('.') else key for key in allowed)}")


def first_members(space: Space, size: int, seed: int) -> list[Member]:
    """Members at points drawn from the space."""
    return [
        Member(number, {
            key: draw(distribution, float(uniform(seed, "population", number, key)))
            for key, distribution in space.distributions.items()
        })
        for number in range(size)
    ]  # fmt: skip


def exploit(members: Sequence[Member], scores: Mapping[int, Score], step: int, space: Space, seed: int) -> list[Member]:
    """The population after the decision at ``step``; ``scores`` by member. Who is no better is not copied."""
    ranked = sorted(sorted(members, key=lambda member: member.number), key=lambda member: scores[member.number], reverse=True)
    quarter = max(1, int(len(members) * QUARTER))
    top, bottom = ranked[:quarter], {member.number for member in ranked[len(members) - quarter :]}
    after = []
    for member in members:
        donor = top[int(uniform(seed, "donor", step, member.number) * len(top))]
        if member.number in bottom and scores[donor.number] > scores[member.number]:
            after.append(Member(member.number, perturb(donor.params, space, seed, step, member.number), step, donor))
        else:
            after.append(member)
    return after


def perturb(params: Mapping[str, Any], space: Space, seed: int, step: int, number: int) -> dict[str, Any]:
    """Each knob times 0.8 or 1.2 within its range, a choice to its neighbor in the list, or (a quarter) drawn anew."""
    changed: dict[str, Any] = {}
    for key, distribution in space.distributions.items():
        anew, way, place = (float(uniform(seed, word, step, number, key)) for word in ("anew", "way", "place"))
        if anew < RESAMPLE:
            changed[key] = draw(distribution, place)
        elif isinstance(distribution, CategoricalDistribution):
            index = distribution.choices.index(params[key]) + (1 if way < 0.5 else -1)
            changed[key] = distribution.choices[min(max(index, 0), len(distribution.choices) - 1)]
        else:
            changed[key] = clip(distribution, params[key] * FACTORS[way < 0.5])
    return changed


def places(folder: Path, size: int, steps: int) -> list[str]:
    """Names of the runs that have the members' places in a population's folder; none when it has come to its end."""
    path = folder / FILE
    decisions = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    newest = decisions[max(decisions, key=int)] if decisions else []
    found = {line["member"]: line["next"] for line in newest}
    return [] if str(steps) in decisions else [found.get(number, Member(number, {}).run) for number in range(size)]


@dataclass
class Population:
    """A search by PBT in its folder, ``base.run.storage_path``."""

    study: optuna.Study
    space: Space
    base: Config
    size: int
    interval: int
    metric: str
    write: Callable[[], None] = lambda: None
    """Called after each decision, so that a killed search says how far it came."""

    def run(self, budget: Budget, clock: Callable[[], float]) -> tuple[list[Member], list[str]]:
        """Train all generations within the budget; the members by their last scores, the best first, and what went wrong.

        ``clock()`` gives the hours used so far.
        """
        members, problems = first_members(self.space, self.size, self.base.run.seed), []
        steps, ends = self.base.train.steps, range(self.interval, self.base.train.steps + self.interval, self.interval)
        for step in (min(end, steps) for end in ends):
            known = self._decided(step)
            if known is None:
                left = replace(budget, hours=None if budget.hours is None else budget.hours - clock())
                if left.hours is not None and left.hours <= 0:
                    break
                failures = self._train(members, step, left)
                problems += failures
                known = self._scores(members, step, {failure.partition(":")[0] for failure in failures})
                if known is None:
                    break  # the budget is spent
            after = exploit(members, known, step, self.space, self.base.run.seed) if step < steps else members
            self._record(members, after, step, known)
            members = after
        return sorted(members, key=lambda member: self._score(member, steps) or FAILED, reverse=True), problems

    def _train(self, members: Sequence[Member], step: int, budget: Budget) -> list[str]:
        """Bring all members to the step; what went wrong, a line each."""
        generation = _Generation([self._job(member, step) for member in members if self._score(member, step) is None])
        for member in members:
            self._fork(member)
        if generation.left:
            run_jobs(generation, self.base, budget)
        return generation.problems

    def _scores(self, members: Sequence[Member], step: int, failed: Collection[str]) -> dict[int, Score] | None:
        """By member; None where one is neither scored nor failed."""
        scores = {member.number: self._score(member, step) for member in members}
        if any(scores[member.number] is None and member.run not in failed for member in members):
            return None
        return {number: score or FAILED for number, score in scores.items()}

    def _decided(self, step: int) -> dict[int, Score] | None:
        """The scores that an earlier command decided on at this step: a member that failed then has failed for good."""
        decisions = self._decisions().get(str(step))
        if decisions is None:
            return None
        return {line["member"]: FAILED if line["score"] is None else tuple(line["score"]) for line in decisions}

    def _decisions(self) -> dict[str, Any]:
        path = Path(self.base.run.storage_path) / FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def score(self, member: Member) -> Score | None:
        """Its score at the end of its run."""
        return self._score(member, self.base.train.steps)

    def config(self, member: Member) -> Config:
        """The run that has the member's place."""
        words = [*self.space.words(member.params), f"run.name={member.run}"]
        return override(self.base.model_dump(mode="json"), words, source=member.run)

    def _job(self, member: Member, step: int) -> Job:
        return Job(self.config(member), (step,))

    def _score(self, member: Member, step: int) -> Score | None:
        lines = read_scores(self.config(member).run_folder)
        found = (line for line in lines if line["step"] == step)
        return next(((line[self.metric], line[f"probability/{self.metric}"]) for line in found), None)

    def _fork(self, member: Member) -> None:
        """Start a copy from its parent's checkpoint; the parent has not moved on yet, for all are made before any trains."""
        if member.parent is None:
            return
        with lock_run(self.config(member), ORPHAN_SECONDS):
            prepared = prepare(self.config(member))
            if prepared.step:
                return
            prepared = replace(prepared, facts={**prepared.facts, "lineage": member.lineage})
            prepared.open()
            source = self.config(member.parent).run_folder / f"checkpoint_{member.start:06d}"
            try:
                checkpoint.fork(source, prepared.run.folder, prepared.run.prints.as_dict())
            except checkpoint.DamagedCheckpoint as error:
                raise UserError(f"{member.run} cannot start from {member.parent.run}: {error}") from None

    def _record(self, before: Sequence[Member], after: Sequence[Member], step: int, scores: Mapping[int, Score]) -> None:
        """What ended goes into the study: members that were replaced as pruned, at the last step all as complete."""
        last = step == self.base.train.steps
        told = {trial.user_attrs.get("run") for trial in runs(self.study)}
        for old, new in zip(before, after, strict=True):
            if old.run in told or (old is new and not last):
                continue
            score = scores[old.number]
            state = TrialState.FAIL if score == FAILED else TrialState.COMPLETE if last else TrialState.PRUNED
            folder = self.config(old).run_folder
            self.study.add_trial(create_trial(
                state=state,
                value=score[0] if state == TrialState.COMPLETE else None,
                params=dict(old.params),
                distributions=dict(self.space.distributions),
                intermediate_values={line["step"]: line[self.metric] for line in read_scores(folder)},
                user_attrs={"run": old.run, "step": step, "lineage": old.lineage},
            ))  # fmt: skip
        decisions = self._decisions()
        decisions[str(step)] = [
            {"member": old.number, "run": old.run,
             "score": None if scores[old.number] == FAILED else list(scores[old.number]),
             "copies": None if old is new or new.parent is None else new.parent.run,
             "next": new.run, "params": dict(new.params)}
            for old, new in zip(before, after, strict=True)
        ]  # fmt: skip
        write_text(Path(self.base.run.storage_path) / FILE, json.dumps(decisions, indent=1))
        self.write()


class _Generation:
    """A source of members to be trained up to one step."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.left = list(jobs)
        self.problems: list[str] = []

    def next(self) -> Job | None:
        """The next member."""
        return self.left.pop(0) if self.left else None

    def scored(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """All come to the step."""
        return True

    def ended(self, job: Job, error: str | None) -> None:
        """Remember what failed."""
        if error is not None:
            self.problems.append(f"{job.name}: {error}")
