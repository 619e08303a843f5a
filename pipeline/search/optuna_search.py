"""Searches: Optuna says what to try and what to give up, from a study that outlives every process; trials are runs.

Random and TPE run each trial to its end. ASHA and HyperBand (Optuna's, asynchronous) score it at rungs of our own step and
end it there: their rungs are in the study too, so tonight's trials compete with last night's, and two searches at once
with each other. A trial that was cut off is continued by whoever claims it next. How a point is drawn depends on (seed,
number of the trial, what the study knew), nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Config, override
from pipeline.errors import UserError
from pipeline.files.folder_lock import LockFile
from pipeline.search.optuna_storage import runs
from pipeline.search.space import Space
from pipeline.seeds import hash64
from pipeline.studies.trials import Job

Algorithm = Literal["random", "tpe", "asha", "hyperband"]
MAX_REPEATS = 100
"""Points in a row that were tried before, after which the space counts as used up."""


@dataclass(frozen=True)
class Plan:
    """What a search does with its study."""

    algorithm: Algorithm
    trials: int
    """Trials that the study is to have, over all nights and searches."""
    objectives: tuple[str, ...] = ("accuracy",)
    """accuracy: up; time, in seconds of training: down."""
    metric: str = "mean"
    """Whose top-1 on the validation videos: primary, auxiliary or mean."""
    min_steps: int | None = None
    """First rung of asha and hyperband; None: a 27th of the run at reduction 3."""
    reduction: int = 3
    """eta: of so many trials at a rung one goes on."""

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """For Optuna."""
        return ["maximize" if name == "accuracy" else "minimize" for name in self.objectives]

    def first_rung(self, steps: int) -> int:
        """Step of the first rung."""
        return self.min_steps or max(1, math.ceil(steps / self.reduction**3))

    def stops(self, steps: int) -> tuple[int, ...]:
        """Where a run of ``steps`` is scored: at each rung, and at its end."""
        if self.algorithm not in ("asha", "hyperband"):
            return (steps,)
        rungs, step = [], self.first_rung(steps)
        while step < steps:
            rungs.append(step)
            step *= self.reduction
        return (*rungs, steps)

    def pruner(self, steps: int) -> optuna.pruners.BasePruner:
        """Who decides at rungs."""
        if self.algorithm == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(self.first_rung(steps), self.reduction)
        if self.algorithm == "hyperband":
            return optuna.pruners.HyperbandPruner(self.first_rung(steps), steps, self.reduction)
        return optuna.pruners.NopPruner()

    def sampler(self, seed: int, number: int) -> optuna.samplers.BaseSampler:
        """Who draws a trial's point."""
        key = int(hash64(seed, "search", number) >> 32)
        if self.algorithm == "random":
            return optuna.samplers.RandomSampler(seed=key)
        return optuna.samplers.TPESampler(seed=key, multivariate=True, n_startup_trials=10)


@dataclass
class _Mine:
    """A trial that this process has claimed."""

    trial: optuna.Trial
    claim: LockFile
    outcome: TrialState = TrialState.FAIL
    values: list[float] | None = None


@dataclass
class Search:
    """A source of trials: asks the study for points, tells it what became of them."""

    study: optuna.Study
    space: Space
    plan: Plan
    base: Config
    """Its storage_path is the search's folder; its seed is every trial's."""
    write: Callable[[], None] = lambda: None
    """Called whenever a trial has ended, so that a killed search says how far it came."""
    problems: list[str] = field(default_factory=list)
    _mine: dict[str, _Mine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study.pruner = self.plan.pruner(self.base.train.steps)

    # ---------------------------------------------------------------------------------------------- what to run next

    def next(self) -> Job | None:
        """A trial that nobody runs any more, else a new one, else None."""
        if job := self._adopt_any(patient=False):
            return job
        for _ in range(MAX_REPEATS):
            if self._begun() >= self.plan.trials:
                return self._adopt_any(patient=True)  # nothing else is left to do: see who on other machines is alive
            job, repeated = self._ask()
            if job or not repeated:
                return job
        print(f"{MAX_REPEATS} points in a row were tried before: the space is used up", flush=True)
        return None

    def _begun(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in runs(self.study))

    def _adopt_any(self, patient: bool) -> Job | None:
        unfinished = [frozen for frozen in runs(self.study) if frozen.state == TrialState.RUNNING]
        return next((job for frozen in unfinished if (job := self._adopt(frozen, patient))), None)

    def _adopt(self, frozen: FrozenTrial, patient: bool) -> Job | None:
        """Continue a trial whose search is gone; ``patient``: see ``LockFile.acquire``."""
        claim = self._claim(frozen.number)
        name = run_name(frozen.number)
        if name in self._mine or not claim.acquire(patient=patient):
            return None
        current = self._current(frozen.number)
        if current.state != TrialState.RUNNING:
            claim.release()
            return None
        trial = optuna.Trial(self.study, current._trial_id)
        if set(current.params) != set(self.space.distributions):  # killed while it was drawn
            self._give_up(trial, "void", "never started")
            claim.release()
            return None
        return self._start(trial, claim)

    def _ask(self) -> tuple[Job | None, bool]:
        """A new trial's job, and whether to ask again where there is none."""
        trial = self.study.ask()
        claim = self._claim(trial.number)
        # between the two lines above another search may have found the trial, taken it for one that was left, and given it up
        if not claim.acquire(seconds=5) or self._current(trial.number).state != TrialState.RUNNING:
            claim.release()
            return None, True
        ours = [one.number for one in runs(self.study) if one.state != TrialState.WAITING]
        if ours.index(trial.number) >= self.plan.trials:  # another search was faster
            self._give_up(trial, "void", "over --trials")
            claim.release()
            return None, False
        self.study.sampler = self.plan.sampler(self.base.run.seed, trial.number)
        for key, distribution in self.space.distributions.items():
            _suggest(trial, key, distribution)
        if (twin := self._twin(trial)) is not None:
            self._repeat(trial, twin)
            claim.release()
            return None, True
        try:
            return self._start(trial, claim), False
        except UserError as error:  # keys that are fine alone and not together
            self._give_up(trial, "error", str(error))
            claim.release()
            self.problems.append(f"{run_name(trial.number)}: {error}")
            return None, True

    def _start(self, trial: optuna.Trial, claim: LockFile) -> Job:
        config = trial_config(self.base, self.space, trial.number, trial.params)
        trial.set_user_attr("run", config.run.name)
        self._mine[config.run.name] = _Mine(trial, claim)
        return Job(config, self.plan.stops(config.train.steps))

    def _claim(self, number: int) -> LockFile:
        return LockFile(Path(self.base.run.storage_path) / ".claims" / f"{run_name(number)}.lock")

    def _current(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    def _twin(self, trial: optuna.Trial) -> FrozenTrial | None:
        """An entry of the same point that is finished or under way."""
        for other in self.study.get_trials(deepcopy=False):
            if other.number == trial.number or other.state not in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING):
                continue
            counts = not other.user_attrs.get("imported_from") or other.user_attrs.get("same_setting")
            if counts and other.params == trial.params and (other.state != TrialState.RUNNING or other.number < trial.number):
                return other
        return None

    def _repeat(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        """Let the sampler know what is known of the point, so that it looks elsewhere."""
        trial.set_user_attr("duplicate_of", twin.number)
        if twin.state == TrialState.COMPLETE:
            self.study.tell(trial, twin.values)
            return
        if len(self.study.directions) == 1:
            for step, value in twin.intermediate_values.items():
                trial.report(value, step)
        pruned = twin.state == TrialState.PRUNED and twin.intermediate_values
        self.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def _give_up(self, trial: optuna.Trial, mark: str, why: str) -> None:
        trial.set_user_attr(mark, why)
        self.study.tell(trial, state=TrialState.FAIL)

    # ------------------------------------------------------------------------------------------------ what came of it

    def scored(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """Record a trial's scores at a stop; whether it is worth going on."""
        mine = self._mine[job.name]
        if step == job.stops[-1]:
            known = {"accuracy": scores[self.plan.metric], "time": scores["seconds"]}
            mine.outcome, mine.values = TrialState.COMPLETE, [known[name] for name in self.plan.objectives]
            _remember(mine.trial, step, scores)
            return True
        before = self.study._storage.get_trial(mine.trial._trial_id).intermediate_values
        if step in before:  # a continued trial passes its old stops again
            return True
        mine.trial.report(scores[self.plan.metric], step)
        if not mine.trial.should_prune():
            return True
        mine.outcome = TrialState.PRUNED
        _remember(mine.trial, step, scores)
        return False

    def ended(self, job: Job, error: str | None) -> None:
        """Tell the study."""
        mine = self._mine.pop(job.name)
        if error is not None:
            mine.trial.set_user_attr("error", error)
            self.problems.append(f"{job.name}: {error}")
            self.study.tell(mine.trial, state=TrialState.FAIL)
        else:
            self.study.tell(mine.trial, mine.values, mine.outcome)
        mine.claim.release()
        self.write()

    def let_go(self) -> None:
        """Of trials that the budget cut off, so that another search may continue them."""
        for mine in self._mine.values():
            mine.claim.release()
        self._mine.clear()


def _remember(trial: optuna.Trial, step: int, scores: Mapping[str, float]) -> None:
    trial.set_user_attr("scores", dict(scores))
    trial.set_user_attr("step", step)


def _suggest(trial: optuna.Trial, key: str, distribution: Any) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    else:
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def run_name(number: int) -> str:
    """Of a trial's run."""
    return f"trial-{number:05d}"


def trial_config(base: Config, space: Space, number: int, params: Mapping[str, Any]) -> Config:
    """The run of a point. Raises UserError where its keys do not go together."""
    words = [*space.words(params), f"run.name={run_name(number)}"]
    return override(base.model_dump(mode="json"), words, source=f"{run_name(number)}, {json.dumps(dict(params))}")
