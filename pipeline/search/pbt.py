"""Population-based training (Jaderberg et al., 2017): members train side by side; the worst copy the best and change a little.

At every interval the lowest quarter of the members by validation accuracy each copies a member of the highest quarter (both
students, both optimizers and the label statistics) and perturbs its values. Equal accuracies, which are frequent for small
validation sets, are ordered by the mean probability of the true class. A copy has a run folder of its own, starts from the
copied checkpoint and records its lineage, because the configuration of a run must be what it was trained with.

All decisions are functions of (seed, interval, scores), and the scores are in the run folders: a killed search that is started
again decides the same and runs what is missing. Tune's PBT is asynchronous and keeps its decisions in the driver, so a killed
search cannot be continued to the same end; hence this implementation, with Tune to run the members.
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

from pipeline.config import Config, list_marked_keys, override
from pipeline.errors import UserError
from pipeline.lifecycle.train_and_evaluate import read_scores
from pipeline.run_folder.contents import lock_run, write_text
from pipeline.search.optuna_storage import list_run_trials
from pipeline.search.space import Space, clamp, draw
from pipeline.seeds import draw_uniform
from pipeline.studies.run_trials import run_jobs
from pipeline.studies.trials import ORPHAN_SECONDS, Budget, Job
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import DamagedCheckpoint
from pipeline.training.prepared_run import prepare_run

Score: TypeAlias = tuple[float, float]
"""The top-1 accuracy and the mean probability of the true class, 0..1."""
FAILED: Score = (-math.inf, -math.inf)
QUARTER = 0.25
RESAMPLE = 0.25
"""The probability that a value is drawn anew instead of perturbed."""
FACTORS = (0.8, 1.2)
FILE = "population.json"


@dataclass(frozen=True)
class Member:
    """A member of the population, and the run that it is at present."""

    number: int
    params: Mapping[str, Any]
    start: int = 0
    """The step from which on these values hold."""
    parent: Member | None = None
    """The member whose checkpoint at ``start`` was copied."""

    @property
    def run_name(self) -> str:
        """The name of the member's run."""
        return f"member-{self.number:02d}" + (f"_from-{self.start:06d}" if self.start else "")

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The member's ancestors, the first one first: the run, the step at which it was copied, and its values."""
        before = [] if self.parent is None else self.parent.lineage
        if before and self.parent is not None:
            before[-1]["until"] = self.start
        return [*before, {"run": self.run_name, "from": self.start, "until": None, "params": dict(self.params)}]


def check_space(space: Space) -> None:
    """Raises UserError that names the keys which cannot change in the middle of a run."""
    allowed = list_marked_keys(Config(), "mid_run")
    fixed = [key for key in space.distributions if not key.startswith(tuple(allowed))]
    if fixed:
        what = f"--algorithm pbt changes knobs in the middle of a run, which {', '.join(fixed)} cannot; it can search"
        raise UserError(f"{what} {', '.join(f'{key}*' if key.endswith('.') else key for key in allowed)}")


def draw_first_members(space: Space, size: int, seed: int) -> list[Member]:
    """Draws the values of the first members from the space."""
    return [
        Member(number, {
            key: draw(distribution, float(draw_uniform(seed, "population", number, key)))
            for key, distribution in space.distributions.items()
        })
        for number in range(size)
    ]  # fmt: skip


def exploit(members: Sequence[Member], scores: Mapping[int, Score], step: int, space: Space, seed: int) -> list[Member]:
    """Returns the population after the decision at ``step``; ``scores`` by the member's number.

    A member of the lowest quarter copies a member of the highest quarter, unless that one is no better.
    """
    ranked = sorted(sorted(members, key=lambda member: member.number), key=lambda member: scores[member.number], reverse=True)
    quarter = max(1, int(len(members) * QUARTER))
    top, bottom = ranked[:quarter], {member.number for member in ranked[len(members) - quarter :]}
    after = []
    for member in members:
        donor = top[int(draw_uniform(seed, "donor", step, member.number) * len(top))]
        if member.number in bottom and scores[donor.number] > scores[member.number]:
            after.append(Member(member.number, perturb(donor.params, space, seed, step, member.number), step, donor))
        else:
            after.append(member)
    return after


def perturb(params: Mapping[str, Any], space: Space, seed: int, step: int, number: int) -> dict[str, Any]:
    """Multiplies each value by 0.8 or 1.2 within its range, or moves a choice to its neighbor in the list.

    A quarter of the values is drawn anew instead.
    """
    changed: dict[str, Any] = {}
    for key, distribution in space.distributions.items():
        # the words stay: another word would be another draw
        resample, direction, position = (
            float(draw_uniform(seed, word, step, number, key)) for word in ("anew", "way", "place")
        )
        if resample < RESAMPLE:
            changed[key] = draw(distribution, position)
        elif isinstance(distribution, CategoricalDistribution):
            index = distribution.choices.index(params[key]) + (1 if direction < 0.5 else -1)
            changed[key] = distribution.choices[min(max(index, 0), len(distribution.choices) - 1)]
        else:
            changed[key] = clamp(distribution, params[key] * FACTORS[direction < 0.5])
    return changed


def read_member_names(folder: Path, size: int, steps: int) -> list[str]:
    """Reads from a population's folder the names of the runs that its members are at present; empty if it has come to its
    end."""
    path = folder / FILE
    decisions = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    newest = decisions[max(decisions, key=int)] if decisions else []
    replacements = {line["member"]: line["next"] for line in newest}
    return [] if str(steps) in decisions else [replacements.get(number, Member(number, {}).run_name) for number in range(size)]


@dataclass
class Population:
    """A search by population-based training in its folder, ``base.run.storage_path``."""

    study: optuna.Study
    space: Space
    base: Config
    size: int
    interval: int
    metric: str
    write: Callable[[], None] = lambda: None
    """Called after each decision, so that the files of a killed search say how far it came."""

    def run(self, budget: Budget, clock: Callable[[], float]) -> tuple[list[Member], list[str]]:
        """Trains all generations within the budget.

        ``clock()`` returns the hours used so far. Returns the members by their last scores, the best first, and what went
        wrong.
        """
        members, problems = draw_first_members(self.space, self.size, self.base.run.seed), []
        steps, ends = self.base.train.steps, range(self.interval, self.base.train.steps + self.interval, self.interval)
        for step in (min(end, steps) for end in ends):
            known = self._read_decided_scores(step)
            if known is None:
                left = replace(budget, hours=None if budget.hours is None else budget.hours - clock())
                if left.hours is not None and left.hours <= 0:
                    break
                failures = self._train(members, step, left)
                problems += failures
                known = self._read_scores(members, step, {failure.partition(":")[0] for failure in failures})
                if known is None:
                    break  # the budget is spent
            after = exploit(members, known, step, self.space, self.base.run.seed) if step < steps else members
            self._record(members, after, step, known)
            members = after
        return sorted(members, key=lambda member: self._read_score_at(member, steps) or FAILED, reverse=True), problems

    def _train(self, members: Sequence[Member], step: int, budget: Budget) -> list[str]:
        """Trains all members to the step. Returns what went wrong, a line each."""
        unscored = [member for member in members if self._read_score_at(member, step) is None]
        generation = _Generation([self._build_job(member, step) for member in unscored])
        for member in members:
            self._fork(member)
        if generation.left:
            run_jobs(generation, self.base, budget)
        return generation.problems

    def _read_scores(self, members: Sequence[Member], step: int, failed: Collection[str]) -> dict[int, Score] | None:
        """Reads the scores by member; None if a member is neither scored nor failed."""
        scores = {member.number: self._read_score_at(member, step) for member in members}
        if any(scores[member.number] is None and member.run_name not in failed for member in members):
            return None
        return {number: score or FAILED for number, score in scores.items()}

    def _read_decided_scores(self, step: int) -> dict[int, Score] | None:
        """Reads the scores on which an earlier command decided at this step; None if it did not.

        A member that failed then has failed for good.
        """
        decisions = self._read_decisions().get(str(step))
        if decisions is None:
            return None
        return {line["member"]: FAILED if line["score"] is None else tuple(line["score"]) for line in decisions}

    def _read_decisions(self) -> dict[str, Any]:
        path = Path(self.base.run.storage_path) / FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def read_score(self, member: Member) -> Score | None:
        """Reads the member's score at the end of its run; None if it has none."""
        return self._read_score_at(member, self.base.train.steps)

    def build_config(self, member: Member) -> Config:
        """Builds the configuration of the run that the member is at present."""
        words = [*self.space.build_overrides(member.params), f"run.name={member.run_name}"]
        return override(self.base.model_dump(mode="json"), words, source=member.run_name)

    def _build_job(self, member: Member, step: int) -> Job:
        return Job(self.build_config(member), (step,))

    def _read_score_at(self, member: Member, step: int) -> Score | None:
        lines = read_scores(self.build_config(member).run_folder)
        lines_of_step = (line for line in lines if line["step"] == step)
        return next(((line[self.metric], line[f"probability/{self.metric}"]) for line in lines_of_step), None)

    def _fork(self, member: Member) -> None:
        """Starts a copy from its parent's checkpoint. All copies are made before any member trains, so the parent has not
        moved on yet."""
        if member.parent is None:
            return
        with lock_run(self.build_config(member), ORPHAN_SECONDS):
            prepared = prepare_run(self.build_config(member))
            if prepared.step:
                return
            prepared = replace(prepared, facts={**prepared.facts, "lineage": member.lineage})
            prepared.create_folder()
            source = self.build_config(member.parent).run_folder / f"checkpoint_{member.start:06d}"
            try:
                checkpoint.fork(source, prepared.run.folder, prepared.run.fingerprints.as_dict())
            except DamagedCheckpoint as error:
                raise UserError(f"{member.run_name} cannot start from {member.parent.run_name}: {error}") from None

    def _record(self, before: Sequence[Member], after: Sequence[Member], step: int, scores: Mapping[int, Score]) -> None:
        """Records in the study which members ended: those that were replaced as pruned, and at the last step all as
        complete."""
        last = step == self.base.train.steps
        recorded = {trial.user_attrs.get("run") for trial in list_run_trials(self.study)}
        for old, new in zip(before, after, strict=True):
            if old.run_name in recorded or (old is new and not last):
                continue
            score = scores[old.number]
            state = TrialState.FAIL if score == FAILED else TrialState.COMPLETE if last else TrialState.PRUNED
            folder = self.build_config(old).run_folder
            self.study.add_trial(create_trial(
                state=state,
                value=score[0] if state == TrialState.COMPLETE else None,
                params=dict(old.params),
                distributions=dict(self.space.distributions),
                intermediate_values={line["step"]: line[self.metric] for line in read_scores(folder)},
                user_attrs={"run": old.run_name, "step": step, "lineage": old.lineage},
            ))  # fmt: skip
        decisions = self._read_decisions()
        decisions[str(step)] = [
            {"member": old.number, "run": old.run_name,
             "score": None if scores[old.number] == FAILED else list(scores[old.number]),
             "copies": None if old is new or new.parent is None else new.parent.run_name,
             "next": new.run_name, "params": dict(new.params)}
            for old, new in zip(before, after, strict=True)
        ]  # fmt: skip
        write_text(Path(self.base.run.storage_path) / FILE, json.dumps(decisions, indent=1))
        self.write()


class _Generation:
    """A source of jobs that trains members up to one step."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.left = list(jobs)
        self.problems: list[str] = []

    def next_job(self) -> Job | None:
        """The next member."""
        return self.left.pop(0) if self.left else None

    def report_scores(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """All come to the step."""
        return True

    def report_end(self, job: Job, error: str | None) -> None:
        """Remember what failed."""
        if error is not None:
            self.problems.append(f"{job.name}: {error}")
