"""Groups runs that differ in their seed only, and compares each setting with a baseline.

The runs of one setting give a mean with an interval. A difference between two settings is computed seed by seed and video by
video, between runs that have the same manifest, label subset and seed (``statistics`` describes how).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.statistics import Estimate, adjust_by_holm, describe_verdict, estimate_mean, estimate_over_seeds
from pipeline.config import Config, list_marked_keys
from pipeline.errors import UserError
from pipeline.evaluation.metrics import find_predicted_classes
from pipeline.run_folder.contents import PREDICTORS, flatten

BASELINE = "supervised"
UNUSED_BY_BASELINE = ("method.", "views.strong.", "data.unlabeled_per_labeled")
USED_BY_BASELINE = "method.supervised."
LABEL_FILE = "method.file_label.file"
"""The key whose value in a setting is the fingerprint of the file's labels, wherever the file lies."""
MAX_KEYS = 3
"""The number of keys that the name of a setting shows at most."""


@dataclass(frozen=True)
class Group:
    """The runs of one setting, which differ in their seed only."""

    label: str
    """The method's name, and the keys that distinguish this group from others of the same method."""
    runs: tuple[RunRecord, ...]
    repeats: tuple[RunRecord, ...] = ()
    """Further runs with the same seed and labels as one of ``runs``. They would be the same sample again, so they are not
    counted."""

    @property
    def method(self) -> str:
        """The method of all runs of the group."""
        return self.runs[0].method

    @cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """The top-1 accuracy in percent over the evaluated runs, by predictor; empty if no run is evaluated."""
        runs = [run for run in self.runs if run.get_top1("mean") is not None]
        return {predictor: _estimate_top1([(run, None) for run in runs], predictor) for predictor in PREDICTORS} if runs else {}

    def get_top1(self, predictor: str) -> Estimate | None:
        """Returns the estimated top-1 accuracy of one predictor in percent, or None if no run is evaluated."""
        return self.estimates.get(predictor)


@dataclass(frozen=True)
class Difference:
    """The top-1 accuracy of ``group`` minus that of ``baseline`` in percentage points, over the seeds that both have."""

    group: Group
    baseline: Group
    pairs: tuple[tuple[RunRecord, RunRecord], ...]
    """Pairs of evaluated runs with the same seed, labels and videos: the group's run and the baseline's."""
    differences: tuple[str, ...]
    """The keys in which the two settings differ apart from the method's own, which is a caveat if the baseline is the
    supervised one."""
    estimates: Mapping[str, Estimate]
    """The estimated difference in percentage points, by predictor."""
    adjusted: Mapping[str, float | None]
    """The p-value by predictor, after Holm's correction for all differences of a report."""

    def compute_by_seed(self, predictor: str) -> Mapping[int, float]:
        """Computes the difference in percentage points for each seed."""
        return {
            ours.seed or 0: (ours.get_top1(predictor) or 0.0) - (theirs.get_top1(predictor) or 0.0)
            for ours, theirs in self.pairs
        }

    def describe_verdict(self, predictor: str) -> str:
        """Says in words whether the difference is more than chance."""
        return describe_verdict(self.estimates[predictor], self.adjusted[predictor])


def _estimate_top1(pairs: Sequence[tuple[RunRecord, RunRecord | None]], predictor: str) -> Estimate:
    """Estimates top-1 in percent, over seeds and videos if all runs have scores of the same videos, else over the seeds."""
    ids = _find_shared_ids([run for pair in pairs for run in pair if run is not None])
    if ids:
        ours = [_mark_correct(run, predictor, ids) for run, _ in pairs]
        theirs = [0.0 if other is None else _mark_correct(other, predictor, ids) for _, other in pairs]
        rows = [own - other for own, other in zip(ours, theirs, strict=True)]
        return estimate_mean(np.stack(rows)).scale(100)
    return estimate_over_seeds(
        [
            (run.get_top1(predictor) or 0.0) - (0.0 if other is None else other.get_top1(predictor) or 0.0)
            for run, other in pairs
        ]
    )


def _find_shared_ids(runs: Sequence[RunRecord]) -> list[str]:
    """Lists the test videos of known class that all runs scored; empty if a run has no scores."""
    if any(run.predictions is None for run in runs):
        return []
    known = [
        {name for name, label in zip(p.ids, p.labels, strict=True) if label >= 0} for run in runs if (p := run.predictions)
    ]
    common = set.intersection(*known)
    first = runs[0].predictions
    return [name for name in first.ids if name in common] if first and len(common) > 1 else []


def _mark_correct(run: RunRecord, predictor: str, ids: Sequence[str]) -> NDArray[np.float64]:
    """Returns 1 for each video that the run classified correctly and 0 for each other one."""
    predictions = run.predictions
    assert predictions is not None
    right = dict(zip(predictions.ids, find_predicted_classes(predictions.scores[predictor]) == predictions.labels, strict=True))
    return np.array([right[name] for name in ids], dtype=np.float64)


# ---------------------------------------------------------------------------------------------------------- settings


def read_setting(run: RunRecord) -> dict[str, Any]:
    """Collects the flat keys that determine the result of a run, without its seed and its folder.

    Of a supervised run only those keys are included that its method uses.
    """
    unused = UNUSED_BY_BASELINE if run.method == BASELINE else ()
    ignored = tuple(key for key in run.config if key.startswith(("run.", *unused)) and not key.startswith(USED_BY_BASELINE))
    keys = {key: value for key, value in run.config.items() if key not in _find_excluded_keys() and key not in ignored}
    keys = {key: value for key, value in keys.items() if value is not None or not key.endswith(".clip.fps")}  # of segments
    keys |= {"method.name": run.method, "labels": run.labels.get("spec"), "manifest": run.manifest_fingerprint or None}
    return keys | ({LABEL_FILE: run.file_labels_fingerprint} if run.file_labels_fingerprint else {})


@cache
def _find_excluded_keys() -> frozenset[str]:
    """Finds the keys that say who ran, where and how fast: all on which neither the weights nor the scores depend.

    The videos' paths are among them, because the manifest's fingerprint stands for the videos.
    """
    all_knobs, result_knobs = flatten(Config().model_dump(mode="json")), flatten(Config().collect_result_knobs())
    return frozenset(all_knobs.keys() - result_knobs.keys() - set(list_marked_keys(Config(), "protocol")))


def find_varied_keys(groups: Sequence[Group]) -> list[str]:
    """Finds the keys of ``read_setting`` in which two groups of one method differ, in the configuration's order."""
    keys = dict.fromkeys(key for group in groups for key in read_setting(group.runs[0]))
    varied = _find_varied_keys_by_method([group.runs[0] for group in groups])
    return [key for key in keys if any(key in names for names in varied.values())]


def _find_varied_keys_by_method(firsts: Sequence[RunRecord]) -> Mapping[str, set[str]]:
    """Finds, for each method, the keys that differ between its settings."""
    varied: dict[str, set[str]] = {}
    for method in {run.method for run in firsts}:
        settings = [read_setting(run) for run in firsts if run.method == method]
        keys = {key for setting in settings for key in setting}
        varied[method] = {key for key in keys if len({repr(setting.get(key, "absent")) for setting in settings}) > 1}
    return varied


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups runs by their setting: the supervised method first, then in the order of each group's first run."""
    gathered: dict[str, list[RunRecord]] = {}
    for run in runs:
        gathered.setdefault(repr(sorted(read_setting(run).items(), key=lambda item: item[0])), []).append(run)
    groups = sorted(gathered.values(), key=lambda group: group[0].method != BASELINE)
    labels = name_settings([group[0] for group in groups])
    return [Group(label, *_select_one_run_per_seed(group)) for label, group in zip(labels, groups, strict=True)]


def _select_one_run_per_seed(runs: Sequence[RunRecord]) -> tuple[tuple[RunRecord, ...], tuple[RunRecord, ...]]:
    """Returns, in the order of their seeds, the first evaluated run of each seed and label subset, and the runs that repeat
    one."""
    ordered = sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.get_top1("mean") is None, run.name))
    first: dict[Any, RunRecord] = {}
    for run in ordered:
        first.setdefault(id(run) if run.seed is None else (run.seed, run.labels_fingerprint), run)
    counted = tuple(first.values())
    return counted, tuple(run for run in ordered if all(run is not one for one in counted))


def sort_groups(groups: Sequence[Group]) -> list[Group]:
    """Sorts groups by the values that were varied if all of these are numbers, the supervised method first; else keeps their
    order."""
    keys = find_varied_keys(groups)
    values = [[read_setting(group.runs[0]).get(key) for key in keys] for group in groups if group.method != BASELINE]
    if not keys or not all(isinstance(value, int | float) for row in values for value in row):
        return list(groups)
    return sorted(groups, key=lambda g: (g.method != BASELINE, [read_setting(g.runs[0]).get(key) or 0 for key in keys]))


def name_settings(firsts: Sequence[RunRecord], ignored: str = "") -> list[str]:
    """Names each setting, by its first run, after its method and, if several have this method, the keys in which they differ.

    If all settings have the same method, the keys alone are the name. The key ``ignored`` is never in it.
    """
    varied = {method: keys - {ignored} for method, keys in _find_varied_keys_by_method(firsts).items()}
    alone = len(firsts) > 1 and len(varied) == 1
    labels = []
    for run in firsts:
        own = read_setting(run)
        short = [f"{key.removeprefix('method.')}={_format_value(own[key])}" for key in own if key in varied[run.method]]
        words = [*([] if alone and short else [run.method]), *short[:MAX_KEYS]]
        labels.append(" ".join(words) + (" …" if len(short) > MAX_KEYS else ""))
    return labels


def _format_value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------- baseline


def choose_baseline(groups: Sequence[Group], wanted: Group | Mapping[str, Any] | None = None) -> Group | None:
    """Chooses the setting that all others are compared with; None if there is only one group.

    It is the ``wanted`` setting, or the first one with the wanted keys and values; else the supervised one; else the only one
    whose varied keys have the program's defaults; else the first. Raises UserError if no group has the wanted values.
    """
    if isinstance(wanted, Group):
        return wanted if len(groups) > 1 else None
    if wanted is not None:
        matching = find_groups(groups, wanted)
        if not matching:
            words = " ".join(f"{key}={value}" for key, value in wanted.items())
            raise UserError(f"no run has the baseline's {words}", [f"there is {group.label}" for group in groups])
        return matching[0] if len(groups) > 1 else None
    if len(groups) < 2 or any(group.method == BASELINE for group in groups):
        return next((group for group in groups if group.method == BASELINE and len(groups) > 1), None)
    keys, defaults = find_varied_keys(groups), flatten(Config().model_dump(mode="json"))
    usual = find_groups(groups, {key: defaults[key] for key in keys if key in defaults})
    return usual[0] if len(usual) == 1 and set(keys) & defaults.keys() else groups[0]


def select_best_groups(groups: Sequence[Group], baseline: Group | None, limit: int) -> list[Group]:
    """Selects up to ``limit`` settings, the baseline and those with the best mean, and keeps their order."""
    estimates = [group.get_top1("mean") for group in groups]
    means = [-1.0 if estimate is None else estimate.mean for estimate in estimates]
    best = sorted(range(len(groups)), key=lambda index: (groups[index] is not baseline, -means[index]))
    return [groups[index] for index in sorted(best[:limit])]


def find_groups(groups: Sequence[Group], params: Mapping[str, Any]) -> list[Group]:
    """Finds the groups whose settings have the given values; a seed among them is ignored."""
    wanted = {key: value for key, value in params.items() if key != "run.seed"}
    settings = [read_setting(group.runs[0]) for group in groups]
    return [
        group
        for group, setting in zip(groups, settings, strict=True)
        if all(_are_same_value(setting.get(key), wanted[key]) for key in wanted)
    ]


def _are_same_value(one: Any, other: Any) -> bool:
    return bool(one == other or repr(one) == repr(other) or (isinstance(one, list) and one == list(other or ())))


def compare_groups(groups: Sequence[Group], wanted: Group | Mapping[str, Any] | None = None) -> list[Difference]:
    """Compares each group with the baseline if both have runs of the same seed, labels and videos.

    The p-values are corrected for the number of comparisons. If there are several supervised settings beside others and no
    baseline is wanted, each other group is compared with the supervised setting that differs from it in the fewest keys.
    """
    chosen = choose_baseline(groups, wanted)
    if chosen is None:
        return []
    many = wanted is None and chosen.method == BASELINE and any(group.method != BASELINE for group in groups)
    baselines = [group for group in groups if group.method == BASELINE] if many else [chosen]
    compared = []
    for group in (group for group in groups if all(group is not baseline for baseline in baselines)):
        candidates = [
            (tuple(describe_differences(baseline.runs[0], group.runs[0])), baseline, pairs)
            for baseline in baselines if (pairs := _pair_runs(baseline, group))
        ]  # fmt: skip
        if candidates:
            differing, baseline, pairs = min(candidates, key=lambda candidate: len(candidate[0]))
            estimates = {predictor: _estimate_top1(pairs, predictor) for predictor in PREDICTORS}
            compared.append((group, baseline, pairs, differing, estimates))
    adjusted = {predictor: adjust_by_holm([estimates[predictor].p for *_, estimates in compared]) for predictor in PREDICTORS}
    return [
        Difference(*parts, {predictor: adjusted[predictor][index] for predictor in PREDICTORS})
        for index, parts in enumerate(compared)
    ]


def describe_differences(first: RunRecord, second: RunRecord) -> Iterable[str]:
    """Yields ``key: value in one, value in the other`` for each key that differs, but for the method's own keys."""
    one, other = read_setting(first), read_setting(second)
    if not (first.labels_fingerprint and first.manifest_fingerprint):
        yield "facts.json does not say on which videos and labels: that they are the same is assumed"
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key) and not key.startswith(UNUSED_BY_BASELINE):
            yield f"{key}: {one.get(key)} in {first.method}, {other.get(key)} in {second.method}"


def _pair_runs(baseline: Group, group: Group) -> tuple[tuple[RunRecord, RunRecord], ...]:
    pairs = []
    for run in group.runs:
        partner = next((other for other in baseline.runs if _can_be_paired(run, other)), None)
        if run.seed is not None and partner is not None and None not in (run.get_top1("mean"), partner.get_top1("mean")):
            pairs.append((run, partner))
    return tuple(pairs)


def _can_be_paired(one: RunRecord, other: RunRecord) -> bool:
    """Returns whether two runs have the same seed, videos and label subset; the subset may differ if its size is what is
    studied."""
    same_labels = one.labels.get("spec") != other.labels.get("spec") or one.labels_fingerprint == other.labels_fingerprint
    return same_labels and (one.seed, one.manifest_fingerprint) == (other.seed, other.manifest_fingerprint)
