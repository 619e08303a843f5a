"""Which runs are the same experiment with another seed, and what one method gains over the supervised baseline.

A number without its spread is no result: seeds of one setting are gathered into mean +- sd (n), and a gain is taken
seed by seed between runs that share manifest, label subset and seed, then averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.metrics import MeanSd, mean_and_sd
from pipeline.studies.runs import VIEWS, Run

BASELINE = "supervised"
NOT_THE_SETTING = (
    "run.", "scale.", "data.manifest", "data.labels", "data.root", "data.clips_per_block", "data.max_quarantined_share",
    "data.decode_timeout_seconds", "evaluation.batch_videos",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.max_failures",
)  # fmt: skip
"""Keys that say who, where and how fast, not what: ``Config.result_knobs`` and the test protocol remain, without the
seed. The manifest's fingerprint stands for the videos."""
UNUSED_BY_BASELINE = ("method.", "views.strong.", "data.unlabeled_per_labeled")


@dataclass(frozen=True)
class Group:
    """Runs of one setting that differ in their seed only."""

    label: str
    """Method, and the keys that tell it from other groups of the same method."""
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """The method of all its runs."""
        return self.runs[0].method

    def top1(self, view: str) -> MeanSd | None:
        """Mean and sd over the evaluated runs, in percent; None when there is none."""
        values = [value for run in self.runs if (value := run.top1(view)) is not None]
        return mean_and_sd(values) if values else None


@dataclass(frozen=True)
class Gain:
    """Top-1 of ``group`` minus that of ``baseline``, in percentage points, over the seeds that both have."""

    group: Group
    baseline: Group
    by_seed: Mapping[int, Mapping[str, float]]
    """seed -> view -> percentage points."""
    differences: tuple[str, ...]
    """Keys beside the method's own in which the two settings differ: a caveat when there are any."""

    def mean(self, view: str) -> MeanSd:
        """Mean and sd of the paired differences over the seeds."""
        return mean_and_sd([points[view] for points in self.by_seed.values()])


def setting(run: Run) -> dict[str, Any]:
    """Flat keys that determine the result, its seed and place aside; of the baseline's, those that it uses."""
    unused = NOT_THE_SETTING + (UNUSED_BY_BASELINE if run.method == BASELINE else ())
    keys = {key: value for key, value in run.config.items() if not key.startswith(unused)}
    keys |= {"method.name": run.method, "labels": run.labels.get("spec"), "manifest": manifest_fingerprint(run)}
    return keys


def manifest_fingerprint(run: Run) -> str | None:
    """Fingerprint of the manifest that the run was trained on."""
    return _fingerprints(run).get("manifest")


def labels_fingerprint(run: Run) -> str | None:
    """Fingerprint of the label subset that the run was trained with."""
    return _fingerprints(run).get("labels") or run.labels.get("fingerprint")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first run, the baseline first, runs by seed."""
    gathered: list[list[Run]] = []
    for run in runs:
        same = next((group for group in gathered if setting(group[0]) == setting(run)), None)
        if same is None:
            gathered.append([run])
        else:
            same.append(run)
    gathered.sort(key=lambda group: group[0].method != BASELINE)
    labels = _labels([group[0] for group in gathered])
    return [
        Group(label, tuple(sorted(group, key=lambda run: (run.seed is None, run.seed or 0, run.name))))
        for label, group in zip(labels, gathered, strict=True)
    ]


def gains(groups: Sequence[Group]) -> list[Gain]:
    """One for each group that is not the baseline and shares a seed, the labels and the videos with one.

    Among several baselines the one whose setting differs in the fewest keys is taken.
    """
    found = []
    for group in (group for group in groups if group.method != BASELINE):
        candidates = [
            Gain(group, baseline, pairs, tuple(differences(baseline.runs[0], group.runs[0])))
            for baseline in groups
            if baseline.method == BASELINE and (pairs := _paired(baseline, group))
        ]
        if candidates:
            found.append(min(candidates, key=lambda gain: len(gain.differences)))
    return found


def differences(first: Run, second: Run) -> Iterable[str]:
    """``key: value -> value`` for what differs beside the method and what only it uses."""
    one, other = setting(first), setting(second)
    if not (labels_fingerprint(first) and manifest_fingerprint(first)):
        yield "facts.json does not say on which videos and labels: that they are the same is assumed"
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key) and not key.startswith(UNUSED_BY_BASELINE):
            yield f"{key}: {one.get(key)} in {first.method}, {other.get(key)} in {second.method}"


def _fingerprints(run: Run) -> Mapping[str, str]:
    found = run.facts.get("fingerprints")
    return found if isinstance(found, dict) else {}


def _paired(baseline: Group, group: Group) -> dict[int, Mapping[str, float]]:
    pairs: dict[int, Mapping[str, float]] = {}
    for run in group.runs:
        partner = next((other for other in baseline.runs if _same_start(run, other)), None)
        if run.seed is None or partner is None:
            continue
        points = {view: (run.top1(view), partner.top1(view)) for view in VIEWS}
        both = {view: ours - theirs for view, (ours, theirs) in points.items() if ours is not None and theirs is not None}
        if len(both) == len(VIEWS):
            pairs[run.seed] = both
    return pairs


def _same_start(one: Run, other: Run) -> bool:
    """Same seed, same label subset, same videos: what must not differ between a run and its baseline."""
    return (one.seed, labels_fingerprint(one), manifest_fingerprint(one)) == (
        other.seed, labels_fingerprint(other), manifest_fingerprint(other))  # fmt: skip


def _labels(firsts: Sequence[Run]) -> list[str]:
    """The method's name, and where several settings share it, the keys in which they differ."""
    labels = []
    for run in firsts:
        rivals = [setting(other) for other in firsts if other.method == run.method]
        keys = [key for key in setting(run) if any(key not in rival or rival[key] != setting(run)[key] for rival in rivals)]
        short = [f"{key.removeprefix('method.')}={setting(run)[key]}" for key in keys]
        labels.append(" ".join([run.method, *short[:3]]) + (" …" if len(short) > 3 else ""))
    return labels
