"""Which runs are the same experiment with another seed, and how each setting differs from the baseline.

A number without its spread is no result: seeds of one setting are gathered into a mean with its interval, and a difference is
taken seed by seed and video by video between runs that share manifest, label subset and seed (``statistics`` says how).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.run_reader import VIEWS, Run, flatten
from pipeline.analysis.statistics import Estimate, estimate, holm, over_seeds, verdict
from pipeline.config import Config, marked_keys
from pipeline.errors import UserError
from pipeline.evaluation.metrics import predicted_classes

BASELINE = "supervised"
UNUSED_BY_BASELINE = ("method.", "views.strong.", "data.unlabeled_per_labeled")
USED_BY_BASELINE = "method.supervised."
MAX_KEYS = 3
"""Keys that a setting's name shows."""


@dataclass(frozen=True)
class Group:
    """Runs of one setting that differ in their seed only."""

    label: str
    """Method, and the keys that tell it from other groups of the same method."""
    runs: tuple[Run, ...]
    repeats: tuple[Run, ...] = ()
    """Further runs with a seed and labels that one of ``runs`` has: the same draw again, so not counted."""

    @property
    def method(self) -> str:
        """The method of all its runs."""
        return self.runs[0].method

    @cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Of each of ``VIEWS``, top-1 in percent over the evaluated runs; empty when there is none."""
        runs = [run for run in self.runs if run.top1("mean") is not None]
        return {view: _estimate([(run, None) for run in runs], view) for view in VIEWS} if runs else {}

    def top1(self, view: str) -> Estimate | None:
        """The estimate of one view."""
        return self.estimates.get(view)


@dataclass(frozen=True)
class Difference:
    """Top-1 of ``group`` minus that of ``baseline``, in percentage points, over the seeds that both have."""

    group: Group
    baseline: Group
    pairs: tuple[tuple[Run, Run], ...]
    """Evaluated runs with the same seed, labels and videos: the group's and the baseline's."""
    differences: tuple[str, ...]
    """Keys beside the method's own in which the two settings differ: a caveat where the baseline is the supervised one."""
    estimates: Mapping[str, Estimate]
    """By view, in percentage points."""
    adjusted: Mapping[str, float | None]
    """p by view, after Holm's correction over all differences of a report."""

    def by_seed(self, view: str) -> Mapping[int, float]:
        """Seed -> percentage points."""
        return {ours.seed or 0: (ours.top1(view) or 0.0) - (theirs.top1(view) or 0.0) for ours, theirs in self.pairs}

    def verdict(self, view: str) -> str:
        """In words, whether this is more than chance."""
        return verdict(self.estimates[view], self.adjusted[view])


def _estimate(pairs: Sequence[tuple[Run, Run | None]], view: str) -> Estimate:
    """Over seeds and videos where all runs have scores of the same videos, else over the seeds. In percent."""
    ids = _shared_ids([run for pair in pairs for run in pair if run is not None])
    if ids:
        rows = [_hits(ours, view, ids) - (0.0 if theirs is None else _hits(theirs, view, ids)) for ours, theirs in pairs]
        return estimate(np.stack(rows)).scaled(100)
    return over_seeds(
        [(ours.top1(view) or 0.0) - (0.0 if theirs is None else theirs.top1(view) or 0.0) for ours, theirs in pairs]
    )


def _shared_ids(runs: Sequence[Run]) -> list[str]:
    """Test videos of known class that all runs scored; none if a run has no scores."""
    if any(run.predictions is None for run in runs):
        return []
    known = [
        {name for name, label in zip(p.ids, p.labels, strict=True) if label >= 0} for run in runs if (p := run.predictions)
    ]
    common = set.intersection(*known)
    first = runs[0].predictions
    return [name for name in first.ids if name in common] if first and len(common) > 1 else []


def _hits(run: Run, view: str, ids: Sequence[str]) -> NDArray[np.float64]:
    found = run.predictions
    assert found is not None
    right = dict(zip(found.ids, predicted_classes(found.scores[view]) == found.labels, strict=True))
    return np.array([right[name] for name in ids], dtype=np.float64)


# ---------------------------------------------------------------------------------------------------------- settings


def setting(run: Run) -> dict[str, Any]:
    """Flat keys that determine the result, its seed and place aside; of the supervised method's, those that it uses."""
    unused = UNUSED_BY_BASELINE if run.method == BASELINE else ()
    aside = tuple(key for key in run.config if key.startswith(("run.", *unused)) and not key.startswith(USED_BY_BASELINE))
    keys = {key: value for key, value in run.config.items() if key not in _aside() and key not in aside}
    keys = {key: value for key, value in keys.items() if value is not None or not key.endswith(".clip.fps")}  # of segments
    keys |= {"method.name": run.method, "labels": run.labels.get("spec"), "manifest": manifest_fingerprint(run)}
    return keys


@cache
def _aside() -> frozenset[str]:
    """Keys that say who, where and how fast, not what: all but those that the weights or the scores depend on. The manifest's
    fingerprint stands for the videos."""
    whole, knobs = flatten(Config().model_dump(mode="json")), flatten(Config().result_knobs())
    return frozenset(whole.keys() - knobs.keys() - set(marked_keys(Config(), "protocol")))


def varied_keys(groups: Sequence[Group]) -> list[str]:
    """Keys of ``setting`` in which any two groups of one method differ, in the configuration's order."""
    keys = dict.fromkeys(key for group in groups for key in setting(group.runs[0]))
    varied = _varied([group.runs[0] for group in groups])
    return [key for key in keys if any(key in found for found in varied.values())]


def _varied(firsts: Sequence[Run]) -> Mapping[str, set[str]]:
    """By method, the keys that differ between its settings."""
    found: dict[str, set[str]] = {}
    for method in {run.method for run in firsts}:
        settings = [setting(run) for run in firsts if run.method == method]
        keys = {key for one in settings for key in one}
        found[method] = {key for key in keys if len({repr(one.get(key, "absent")) for one in settings}) > 1}
    return found


def manifest_fingerprint(run: Run) -> str | None:
    """Fingerprint of the manifest that the run was trained on."""
    return _fingerprints(run).get("manifest")


def labels_fingerprint(run: Run) -> str | None:
    """Fingerprint of the label subset that the run was trained with."""
    return _fingerprints(run).get("labels") or run.labels.get("fingerprint")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first run, the supervised method first, runs by seed, each seed once."""
    gathered: dict[str, list[Run]] = {}
    for run in runs:
        gathered.setdefault(repr(sorted(setting(run).items(), key=lambda item: item[0])), []).append(run)
    groups = sorted(gathered.values(), key=lambda group: group[0].method != BASELINE)
    labels = _labels([group[0] for group in groups])
    return [Group(label, *_each_seed_once(group)) for label, group in zip(labels, groups, strict=True)]


def _each_seed_once(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """By seed: of each seed and label subset the first run that was evaluated, and the others."""
    ordered = sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.top1("mean") is None, run.name))
    first: dict[Any, Run] = {}
    for run in ordered:
        first.setdefault(id(run) if run.seed is None else (run.seed, labels_fingerprint(run)), run)
    counted = tuple(first.values())
    return counted, tuple(run for run in ordered if all(run is not one for one in counted))


def in_order(groups: Sequence[Group]) -> list[Group]:
    """Ascending by what was varied where that is numbers, the supervised method first; else as they are."""
    keys = varied_keys(groups)
    values = [[setting(group.runs[0]).get(key) for key in keys] for group in groups if group.method != BASELINE]
    if not keys or not all(isinstance(value, int | float) for place in values for value in place):
        return list(groups)
    return sorted(groups, key=lambda g: (g.method != BASELINE, [setting(g.runs[0]).get(key) or 0 for key in keys]))


def _labels(firsts: Sequence[Run]) -> list[str]:
    """The method's name, and where several settings share it, the keys in which they differ; the keys alone where all do."""
    varied = _varied(firsts)
    alone = len(firsts) > 1 and len(varied) == 1
    labels = []
    for run in firsts:
        own = setting(run)
        short = [f"{key.removeprefix('method.')}={_short(own[key])}" for key in own if key in varied[run.method]]
        words = [*([] if alone and short else [run.method]), *short[:MAX_KEYS]]
        labels.append(" ".join(words) + (" …" if len(short) > MAX_KEYS else ""))
    return labels


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------- baseline


def choose_baseline(groups: Sequence[Group], wanted: Group | Mapping[str, Any] | None = None) -> Group | None:
    """What all others are compared with: the ``wanted`` setting or the first one with these params, else the supervised one,
    else the only one whose varied keys are at the program's defaults, else the first. None for a single group.

    Raises UserError when no group has the params.
    """
    if isinstance(wanted, Group):
        return wanted if len(groups) > 1 else None
    if wanted is not None:
        found = find(groups, wanted)
        if not found:
            words = " ".join(f"{key}={value}" for key, value in wanted.items())
            raise UserError(f"no run has the baseline's {words}", [f"there is {group.label}" for group in groups])
        return found[0] if len(groups) > 1 else None
    if len(groups) < 2 or any(group.method == BASELINE for group in groups):
        return next((group for group in groups if group.method == BASELINE and len(groups) > 1), None)
    keys, defaults = varied_keys(groups), flatten(Config().model_dump(mode="json"))
    usual = [g for g in groups if all(_same(setting(g.runs[0]).get(key), defaults.get(key)) for key in keys if key in defaults)]
    return usual[0] if len(usual) == 1 and set(keys) & defaults.keys() else groups[0]


def foremost(groups: Sequence[Group], baseline: Group | None, limit: int) -> list[Group]:
    """Up to ``limit`` settings: the baseline and those with the best mean, in the order of ``groups``."""
    best = sorted(groups, key=lambda group: (group is not baseline, -(value.mean if (value := group.top1("mean")) else -1.0)))
    return [group for group in groups if any(group is kept for kept in best[:limit])]


def find(groups: Sequence[Group], params: Mapping[str, Any]) -> list[Group]:
    """Groups whose settings have these values, the seed aside."""
    wanted = {key: value for key, value in params.items() if key != "run.seed"}
    return [group for group in groups if all(_same(setting(group.runs[0]).get(key), wanted[key]) for key in wanted)]


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or repr(one) == repr(other) or (isinstance(one, list) and one == list(other or ())))


def compare(groups: Sequence[Group], wanted: Group | Mapping[str, Any] | None = None) -> list[Difference]:
    """One for each group that shares a seed, the labels and the videos with the baseline, each corrected for all of them.

    Of several supervised settings, each group is compared with the one that differs from it in the fewest keys.
    """
    chosen = choose_baseline(groups, wanted)
    if chosen is None:
        return []
    many = wanted is None and chosen.method == BASELINE
    baselines = [group for group in groups if group.method == BASELINE] if many else [chosen]
    found = []
    for group in (group for group in groups if all(group is not baseline for baseline in baselines)):
        near = [
            (tuple(differences(baseline.runs[0], group.runs[0])), baseline, pairs)
            for baseline in baselines if (pairs := _paired(baseline, group))
        ]  # fmt: skip
        if near:
            differing, baseline, pairs = min(near, key=lambda one: len(one[0]))
            found.append((group, baseline, pairs, differing, {view: _estimate(pairs, view) for view in VIEWS}))
    adjusted = {view: holm([estimates[view].p for *_, estimates in found]) for view in VIEWS}
    return [Difference(*one, {view: adjusted[view][place] for view in VIEWS}) for place, one in enumerate(found)]


def differences(first: Run, second: Run) -> Iterable[str]:
    """``key: value in one, value in the other`` for what differs beside the method and what only it uses."""
    one, other = setting(first), setting(second)
    if not (labels_fingerprint(first) and manifest_fingerprint(first)):
        yield "facts.json does not say on which videos and labels: that they are the same is assumed"
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key) and not key.startswith(UNUSED_BY_BASELINE):
            yield f"{key}: {one.get(key)} in {first.method}, {other.get(key)} in {second.method}"


def _fingerprints(run: Run) -> Mapping[str, str]:
    found = run.facts.get("fingerprints")
    return found if isinstance(found, dict) else {}


def _paired(baseline: Group, group: Group) -> tuple[tuple[Run, Run], ...]:
    pairs = []
    for run in group.runs:
        partner = next((other for other in baseline.runs if _same_start(run, other)), None)
        if run.seed is not None and partner is not None and None not in (run.top1("mean"), partner.top1("mean")):
            pairs.append((run, partner))
    return tuple(pairs)


def _same_start(one: Run, other: Run) -> bool:
    """Same seed, same videos, and the same label subset unless its size is what is studied."""
    same_labels = one.labels.get("spec") != other.labels.get("spec") or labels_fingerprint(one) == labels_fingerprint(other)
    return same_labels and (one.seed, manifest_fingerprint(one)) == (other.seed, manifest_fingerprint(other))
