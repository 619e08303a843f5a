"""Searches with Optuna, whose study survives every process. Optuna proposes values and decides which trials stop early.

Random search and TPE train each trial to its end. ASHA and HyperBand (Optuna's asynchronous ones) score a trial at rungs,
which are steps where it may end. The rungs are saved in the study, so tonight's trials compete with last night's, and two
searches at once compete with each other. A trial that was cut off is continued by whoever claims it next. The values of a
trial depend on (seed, number of the trial, what the study knew) and on nothing else.
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
from pipeline.search.optuna_storage import list_run_trials
from pipeline.search.space import Space
from pipeline.seeds import hash_to_uint64
from pipeline.studies.trials import Job

Algorithm = Literal["random", "tpe", "asha", "hyperband"]
MAX_REPEATS = 100
"""If so many points in a row were tried before, the space counts as used up."""


@dataclass(frozen=True)
class SearchPlan:
    """How a search proceeds: its algorithm, its objectives and its number of trials."""

    algorithm: Algorithm
    trials: int
    """The number of trials that the study is to have, over all nights and searches."""
    objectives: tuple[str, ...] = ("accuracy",)
    """``accuracy`` is maximized; ``time``, in seconds of training, is minimized."""
    metric: str = "mean"
    """Whose top-1 on the validation videos is the accuracy: primary, auxiliary or mean."""
    min_steps: int | None = None
    """The first rung of asha and hyperband; None for a 27th of the run at reduction 3."""
    reduction: int = 3
    """One of so many trials at a rung continues (eta)."""

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """The directions of the objectives, as Optuna calls them."""
        return ["maximize" if name == "accuracy" else "minimize" for name in self.objectives]

    def compute_first_rung(self, steps: int) -> int:
        """Computes the step of the first rung."""
        return self.min_steps or max(1, math.ceil(steps / self.reduction**3))

    def list_stops(self, steps: int) -> tuple[int, ...]:
        """Lists the steps at which a run of ``steps`` steps is scored: the rungs, and its end."""
        if self.algorithm not in ("asha", "hyperband"):
            return (steps,)
        rungs, step = [], self.compute_first_rung(steps)
        while step < steps:
            rungs.append(step)
            step *= self.reduction
        return (*rungs, steps)

    def make_pruner(self, steps: int) -> optuna.pruners.BasePruner:
        """Makes the Optuna pruner that decides at rungs which trials continue."""
        if self.algorithm == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(self.compute_first_rung(steps), self.reduction)
        if self.algorithm == "hyperband":
            return optuna.pruners.HyperbandPruner(self.compute_first_rung(steps), steps, self.reduction)
        return optuna.pruners.NopPruner()

    def make_sampler(self, seed: int, number: int) -> optuna.samplers.BaseSampler:
        """Makes the Optuna sampler that draws the values of trial ``number``."""
        key = int(hash_to_uint64(seed, "search", number) >> 32)
        if self.algorithm == "random":
            return optuna.samplers.RandomSampler(seed=key)
        return optuna.samplers.TPESampler(seed=key, multivariate=True, n_startup_trials=10)


@dataclass
class _ClaimedTrial:
    """A trial that this process has claimed."""

    trial: optuna.Trial
    claim: LockFile
    outcome: TrialState = TrialState.FAIL
    values: list[float] | None = None


@dataclass
class Search:
    """A source of trials that asks an Optuna study for points and tells it their results."""

    study: optuna.Study
    space: Space
    plan: SearchPlan
    base: Config
    """The configuration of all trials. Its storage_path is the search's folder, and its seed is every trial's."""
    write: Callable[[], None] = lambda: None
    """Called whenever a trial has ended, so that the files of a killed search say how far it came."""
    problems: list[str] = field(default_factory=list)
    _claimed: dict[str, _ClaimedTrial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study.pruner = self.plan.make_pruner(self.base.train.steps)

    # ---------------------------------------------------------------------------------------------- what to run next

    def next_job(self) -> Job | None:
        """Returns a trial that nobody runs anymore, else a new one, else None."""
        if job := self._adopt_abandoned(until_certain=False):
            return job
        for _ in range(MAX_REPEATS):
            if self._count_begun() >= self.plan.trials:
                return self._adopt_abandoned(until_certain=True)  # nothing else is left: see who is alive
            job, repeated = self._ask_for_trial()
            if job or not repeated:
                return job
        print(f"{MAX_REPEATS} points in a row were tried before: the space is used up", flush=True)
        return None

    def _count_begun(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in list_run_trials(self.study))

    def _adopt_abandoned(self, until_certain: bool) -> Job | None:
        unfinished = [frozen for frozen in list_run_trials(self.study) if frozen.state == TrialState.RUNNING]
        return next((job for frozen in unfinished if (job := self._adopt(frozen, until_certain))), None)

    def _adopt(self, frozen: FrozenTrial, until_certain: bool) -> Job | None:
        """Continues a trial whose search is gone; ``until_certain`` is explained in ``LockFile.acquire``."""
        claim = self._make_claim(frozen.number)
        name = name_run(frozen.number)
        if name in self._claimed or not claim.acquire(until_certain=until_certain):
            return None
        current = self._read_trial(frozen.number)
        if current.state != TrialState.RUNNING:
            claim.release()
            return None
        trial = optuna.Trial(self.study, current._trial_id)
        if set(current.params) != set(self.space.distributions):  # killed while it was drawn
            self._give_up(trial, "void", "never started")
            claim.release()
            return None
        return self._start(trial, claim)

    def _ask_for_trial(self) -> tuple[Job | None, bool]:
        """Returns a new trial's job or None, and whether to ask again if it is None."""
        trial = self.study.ask()
        claim = self._make_claim(trial.number)
        # between the two lines above another search may have found the trial, taken it for one that was left, and given it up
        if not claim.acquire(seconds=5) or self._read_trial(trial.number).state != TrialState.RUNNING:
            claim.release()
            return None, True
        ours = [one.number for one in list_run_trials(self.study) if one.state != TrialState.WAITING]
        if ours.index(trial.number) >= self.plan.trials:  # another search was faster
            self._give_up(trial, "void", "over --trials")
            claim.release()
            return None, False
        self.study.sampler = self.plan.make_sampler(self.base.run.seed, trial.number)
        for key, distribution in self.space.distributions.items():
            _suggest(trial, key, distribution)
        if (duplicate := self._find_duplicate(trial)) is not None:
            self._record_duplicate(trial, duplicate)
            claim.release()
            return None, True
        try:
            return self._start(trial, claim), False
        except UserError as error:  # keys that are fine alone and not together
            self._give_up(trial, "error", str(error))
            claim.release()
            self.problems.append(f"{name_run(trial.number)}: {error}")
            return None, True

    def _start(self, trial: optuna.Trial, claim: LockFile) -> Job:
        config = build_trial_config(self.base, self.space, trial.number, trial.params)
        trial.set_user_attr("run", config.run.name)
        self._claimed[config.run.name] = _ClaimedTrial(trial, claim)
        return Job(config, self.plan.list_stops(config.train.steps))

    def _make_claim(self, number: int) -> LockFile:
        return LockFile(Path(self.base.run.storage_path) / ".claims" / f"{name_run(number)}.lock")

    def _read_trial(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    def _find_duplicate(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Finds a trial of the same point that is finished or running."""
        for other in self.study.get_trials(deepcopy=False):
            if other.number == trial.number or other.state not in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING):
                continue
            counts = not other.user_attrs.get("imported_from") or other.user_attrs.get("same_setting")
            if counts and other.params == trial.params and (other.state != TrialState.RUNNING or other.number < trial.number):
                return other
        return None

    def _record_duplicate(self, trial: optuna.Trial, original: FrozenTrial) -> None:
        """Tells the sampler what is known of the point, so that it looks elsewhere."""
        trial.set_user_attr("duplicate_of", original.number)
        if original.state == TrialState.COMPLETE:
            self.study.tell(trial, original.values)
            return
        if len(self.study.directions) == 1:
            for step, value in original.intermediate_values.items():
                trial.report(value, step)
        pruned = original.state == TrialState.PRUNED and original.intermediate_values
        self.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def _give_up(self, trial: optuna.Trial, mark: str, why: str) -> None:
        trial.set_user_attr(mark, why)
        self.study.tell(trial, state=TrialState.FAIL)

    # ------------------------------------------------------------------------------------------------ what came of it

    def report_scores(self, job: Job, step: int, scores: Mapping[str, float]) -> bool:
        """Records a trial's scores at a stop. Returns whether it is worth continuing."""
        claimed = self._claimed[job.name]
        if step == job.stops[-1]:
            known = {"accuracy": scores[self.plan.metric], "time": scores["seconds"]}
            claimed.outcome, claimed.values = TrialState.COMPLETE, [known[name] for name in self.plan.objectives]
            _save_scores(claimed.trial, step, scores)
            return True
        before = self.study._storage.get_trial(claimed.trial._trial_id).intermediate_values
        if step in before:  # a continued trial passes its old stops again
            return True
        claimed.trial.report(scores[self.plan.metric], step)
        if not claimed.trial.should_prune():
            return True
        claimed.outcome = TrialState.PRUNED
        _save_scores(claimed.trial, step, scores)
        return False

    def report_end(self, job: Job, error: str | None) -> None:
        """Tells the study how the trial ended."""
        claimed = self._claimed.pop(job.name)
        if error is not None:
            claimed.trial.set_user_attr("error", error)
            self.problems.append(f"{job.name}: {error}")
            self.study.tell(claimed.trial, state=TrialState.FAIL)
        else:
            self.study.tell(claimed.trial, claimed.values, claimed.outcome)
        claimed.claim.release()
        self.write()

    def release_claims(self) -> None:
        """Releases the trials that the budget cut off, so that another search may continue them."""
        for claimed in self._claimed.values():
            claimed.claim.release()
        self._claimed.clear()


def _save_scores(trial: optuna.Trial, step: int, scores: Mapping[str, float]) -> None:
    trial.set_user_attr("scores", dict(scores))
    trial.set_user_attr("step", step)


def _suggest(trial: optuna.Trial, key: str, distribution: Any) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    else:
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def name_run(number: int) -> str:
    """Returns the name of a trial's run."""
    return f"trial-{number:05d}"


def build_trial_config(base: Config, space: Space, number: int, params: Mapping[str, Any]) -> Config:
    """Builds the configuration of a point. Raises UserError if its values contradict each other."""
    words = [*space.build_overrides(params), f"run.name={name_run(number)}"]
    return override(base.model_dump(mode="json"), words, source=f"{name_run(number)}, {json.dumps(dict(params))}")
