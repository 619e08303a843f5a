"""What the report's page says, as plain values for its template: sentences, caveats and small tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.comparison import BASELINE, Difference, Group
from pipeline.analysis.response import Response
from pipeline.analysis.run_reader import VIEWS, Run
from pipeline.analysis.statistics import ALPHA, Estimate, p_text
from pipeline.analysis.study_reader import Given, Study
from pipeline.evaluation.metrics import confusion_matrix, mean_and_sd, predicted_classes
from pipeline.report.tables import hours_text, signed
from pipeline.training.monitoring.failure_signatures import KNOBS

NBSP = "\N{NO-BREAK SPACE}"
MOST_NAMED = 3
"""Settings that a sentence names."""


@dataclass(frozen=True)
class Headline:
    """What was asked, and what came out."""

    title: str
    question: str
    answer: str


def headline(given: Given, groups: Sequence[Group], found: Sequence[Difference]) -> Headline:
    """The page's first sentences: the study's question, and the answer with its uncertainty."""
    searches = [study for study in given.studies if study.is_search]
    asked = next((study.question for study in given.studies if study.question), "") if len(given.studies) == 1 else ""
    if not groups:
        return Headline(
            _title(given, groups, found), asked or "Which configuration is best?", " ".join(map(best_trial, searches))
        )
    answer = " ".join([_answer(groups, found), *map(best_trial, searches)])
    return Headline(_title(given, groups, found), asked or _question(groups, found), answer.replace("n = ", f"n{NBSP}={NBSP}"))


def _title(given: Given, groups: Sequence[Group], found: Sequence[Difference]) -> str:
    if given.studies and all(study.kind != "runs" for study in given.studies):
        names = [study.name.replace("_", " ").replace("-", " ") for study in given.studies]
        title = " and ".join(names) if len(names) < 3 else f"{len(names)} studies"
        return title[:1].upper() + title[1:]
    if len(found) == 1:
        return f"{found[0].group.label} against {found[0].baseline.label}"
    return " and ".join(group.label for group in groups) if len(groups) < 3 else f"{len(groups)} settings compared"


def _question(groups: Sequence[Group], found: Sequence[Difference]) -> str:
    if len(found) == 1 and found[0].baseline.method == BASELINE:
        label = found[0].group.label
        return f"What does {label} gain over training on the labeled videos alone, with the same videos, labels and seeds?"
    split = judged_on(groups)
    if found:
        base = found[0].baseline.label
        return f"Which setting recognizes more {split} videos than {base}, on the same videos, labels and seeds?"
    return f"How many of the {split} videos are recognized?"


def judged_on(groups: Sequence[Group]) -> str:
    """``test``, ``validation``, or both words."""
    return " and ".join(sorted({run.split for group in groups for run in group.runs})) or "test"


def _answer(groups: Sequence[Group], found: Sequence[Difference]) -> str:
    evaluated = [group for group in groups if group.top1("mean")]
    if not evaluated:
        return "Not known yet: " + ("the run was not evaluated." if len(groups) == 1 else "no run was evaluated.")
    if len(found) == 1:
        return _single_answer(found[0])
    if found:
        return _study_answer(found)
    if len(evaluated) > 1:
        parts = [f"{group.label} {_percent(group, 'mean')}" for group in evaluated[:6]]
        rest = f"; and {len(evaluated) - 6} more below" if len(evaluated) > 6 else ""
        return f"By the mean of both students: {'; '.join(parts)}{rest}. They share no seed and videos, so none is compared."
    group = evaluated[0]
    videos = next(run.evaluation["videos"] for run in group.runs if run.evaluation.get("videos"))
    return (
        f"{_percent(group, 'mean')} of {videos:,} by the mean of both students; "
        f"{_percent(group, 'primary')} by the primary, {_percent(group, 'auxiliary')} by the auxiliary alone."
    )


def _single_answer(one: Difference) -> str:
    points = one.estimates["mean"]
    spread = "" if points.sd is None else f"{NBSP}±{NBSP}{points.sd:.1f}"
    seeds = f"{points.seeds} seed{'s' * (points.seeds > 1)}"
    ahead = sum(value > 0 for value in one.by_seed("mean").values())
    counted = f", ahead in {ahead} of {points.seeds}" if points.seeds > 1 else ""
    ours, theirs = (mean_and_sd([run.top1("mean") or 0.0 for run in runs]).mean for runs in zip(*one.pairs, strict=True))
    return (
        f"{signed(points.mean)}{spread} percentage points of top-1 ({seeds}{counted}){_range(points)}: "
        f"{ours:.1f}{NBSP}% against {theirs:.1f}{NBSP}% for the mean of both students. {_said(one)}"
    )


def _said(one: Difference) -> str:
    text = one.verdict("mean")
    p = (
        f", p{NBSP}{p_text(one.adjusted['mean'])}"
        if one.estimates["mean"].seeds > 1 and one.adjusted["mean"] is not None
        else ""
    )
    return text[:1].upper() + text[1:] + f"{p}."


def _study_answer(found: Sequence[Difference]) -> str:
    base = _bases(found)
    seeds = sorted({one.estimates["mean"].seeds for one in found})
    n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
    told = [
        one
        for one in found
        if one.estimates["mean"].seeds > 1 and (one.adjusted["mean"] or 0.0) <= ALPHA and one.adjusted["mean"] is not None
    ]
    told.sort(key=lambda one: -one.estimates["mean"].mean)
    better, worse = ([one for one in told if (one.estimates["mean"].mean > 0) == up] for up in (True, False))
    parts = [f"{word} than {base}: {_named(ones)}." for word, ones in (("Better", better), ("Worse", worse[::-1])) if ones]
    rest = len(found) - len(told)
    if rest and seeds != [1]:
        parts.append(f"{'The other ' if told else 'None of the '}{rest} {_plural('setting', rest)} "
                     + (f"{'is' if rest == 1 else 'are'} not distinguishable from it at {n}." if told
                        else f"can be told from {base}: not distinguishable at {n}."))  # fmt: skip
    if seeds == [1]:
        parts.append(
            f"One seed of each of the {len(found)} settings: none can be told from {base}, another seed may differ as much."
        )
    if not told:
        largest = max(found, key=lambda one: abs(one.estimates["mean"].mean))
        parts.append(f"The largest difference is that of {_named([largest])}.")
    return " ".join(parts)


def _named(ones: Sequence[Difference]) -> str:
    texts = [
        f"{one.group.label} by {signed(one.estimates['mean'].mean)} points{_range(one.estimates['mean'])}"
        for one in ones[:MOST_NAMED]
    ]
    return ", ".join(texts) + (f" and {len(ones) - MOST_NAMED} more" if len(ones) > MOST_NAMED else "")


def _bases(found: Sequence[Difference]) -> str:
    names = list(dict.fromkeys(one.baseline.label for one in found))
    return names[0] if len(names) == 1 else BASELINE


def _plural(word: str, count: int) -> str:
    return word + "s" * (count != 1)


def _range(points: Estimate) -> str:
    if points.low is None or points.high is None:
        return ""
    over = "" if points.over == "seeds and videos" else f" over {points.over}"
    low, high = signed(max(points.low, -100.0)), signed(min(points.high, 100.0))
    return f" [95{NBSP}%{over}: {low}{NBSP}to{NBSP}{high}]"


def _percent(group: Group, view: str) -> str:
    """``71.2 ± 1.1 % (3 seeds)`` with spaces that do not break."""
    value = group.top1(view)
    if value is None:
        return "unknown"
    spread = "" if value.sd is None else f"{NBSP}±{NBSP}{value.sd:.1f}"
    return f"{value.mean:.1f}{spread}{NBSP}%" + (f" ({value.seeds}{NBSP}seeds)" if value.seeds > 1 else "")


def best_trial(study: Study) -> str:
    """What a search found, and that the best of many is luck, too."""
    lead = study.objectives[0]
    done = [trial for trial in study.trials if trial.state == "complete" and trial.values.get(lead.name) is not None]
    counts = ", ".join(f"{count} {state}" for state, count in sorted(study.counts.items()))
    if not done:
        return f"Of {study.name} no trial is complete yet ({counts or 'none was begun'})."
    best = (max if lead.maximize else min)(done, key=lambda trial: trial.values[lead.name] or 0.0)
    chosen = ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in best.params.items()
        if key != "run.seed"
    )
    value = best.values[lead.name]
    text = f"{100 * value:.1f}{NBSP}%" if lead.name in VIEWS else f"{value:.4g}"
    return (
        f"Best of {len(study.trials)} trials ({counts}): number {best.number}, {lead.name} {text}, with {chosen}. "
        "The best of many is partly luck: train it again with other seeds before it is believed."
    )


def caveats(groups: Sequence[Group], found: Sequence[Difference], trials: Sequence[Group] = ()) -> list[str]:
    """What a careful reader would ask about the numbers."""
    notes = []
    runs = [run for group in (*groups, *trials) for run in group.runs]
    sizes = sorted({run.evaluation["videos"] for run in runs if run.evaluation.get("videos")})
    if len(sizes) > 1:
        notes.append(f"The runs were tested on different numbers of videos: {', '.join(map(str, sizes))}.")
    if held := [run.name for run in runs if run.split != "test"]:
        which = ", ".join(held) if len(held) <= MOST_NAMED else "all runs" if len(held) == len(runs) else f"{len(held)} runs"
        notes.append(f"Judged on validation videos, not on test ones: {which}.")
    if sizes and sizes[0] < 1000:
        which = judged_on((*groups, *trials))
        notes.append(f"With {sizes[0]} {which} videos, one video more or less is {100 / sizes[0]:.3g} points.")
    for group in groups:
        if group.repeats:
            names = ", ".join(run.name for run in group.repeats)
            notes.append(f"{group.label}: each seed counts once; not counted, for they repeat one: {names}.")
    notes += _caveats_of_pairs(groups, found)
    if any(group.top1("mean") for group in groups) and all(len(group.runs) == 1 for group in groups):
        notes.append("One seed of each setting: how far another seed would land is unknown.")
    return notes


def _caveats_of_pairs(groups: Sequence[Group], found: Sequence[Difference]) -> Iterable[str]:
    for one in found:
        if one.baseline.method == BASELINE != one.group.method:
            yield from (f"{one.group.label} and {BASELINE} also differ in {what}." for what in one.differences)
        paired = [ours for ours, _ in one.pairs]
        if left := [run.name for run in one.group.runs if all(run is not ours for ours in paired)]:
            why = f"no evaluated {one.baseline.label} run has the same seed, labels and videos"
            names = ", ".join(left[:MOST_NAMED]) + " and more" * (len(left) > MOST_NAMED)
            yield f"No difference for {names}: {why}, or it is not evaluated."
    if found and any(one.estimates["mean"].over == "seeds" for one in found):
        yield "Not every run has its predictions.parquet: intervals are over the seeds alone and wider than they need be."


def per_class_table(groups: Sequence[Group]) -> tuple[list[str], list[tuple[str, str, list[float | None]]]]:
    """(column names, rows of class, number of test videos, accuracies in percent); no rows without an evaluation.

    One group: a column for each student and their mean. Several: the mean of the students, averaged over the seeds.
    """
    evaluated = [group for group in groups if group.top1("mean")]
    if not evaluated:
        return [], []
    columns = [(view, evaluated[0], view) for view in VIEWS]
    if len(evaluated) > 1:
        columns = [(group.label, group, "mean") for group in evaluated]
    classes = next(run for run in evaluated[0].runs if run.evaluation).evaluation["classes"]
    totals = _class_totals(evaluated, classes)
    values = {name: [_class_accuracy(group, view, name) for _, group, view in columns] for name in classes}
    return [name for name, _, _ in columns], [(name, totals.get(name, ""), values[name]) for name in classes]


def confusion(group: Group) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Counts of the students' mean, summed over the group's runs with the same classes, and the classes."""
    found = [run.predictions for run in group.runs if run.predictions is not None]
    found = [predictions for predictions in found if predictions.classes == found[0].classes]
    if not found:
        return None
    matrices = [confusion_matrix(p.labels, predicted_classes(p.scores["mean"]), len(p.classes)) for p in found]
    return np.sum(matrices, axis=0), found[0].classes


def most_confused(counts: NDArray[np.int64], classes: Sequence[str], limit: int = 8) -> list[tuple[str, str, int, int]]:
    """(true, predicted, count, videos of the true class) of the largest errors."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    cells = [divmod(int(cell), len(classes)) for cell in order]
    return [(classes[a], classes[b], int(wrong[a, b]), int(counts[a].sum())) for a, b in cells if wrong[a, b]]


def quarantined(runs: Sequence[Run], limit: int = 50) -> tuple[list[tuple[str, str, str, int]], int]:
    """Rows of (run, video, reason, times), the most frequent first, and how many rows were left off."""
    records = [(run.name, record) for run in runs for record in run.quarantine]
    counted = Counter((name, str(record.get("uri", "?")), str(record.get("reason", "?"))) for name, record in records)
    rows = [(*key, times) for key, times in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    return rows[:limit], max(len(rows) - limit, 0)


def _class_totals(groups: Sequence[Group], classes: Sequence[str]) -> dict[str, str]:
    found = next((run.predictions for group in groups for run in group.runs if run.predictions is not None), None)
    if found is None or list(found.classes) != list(classes):
        return {}
    counts = np.bincount(found.labels[found.labels >= 0], minlength=len(classes))
    return {name: f"{count:,}" for name, count in zip(classes, counts, strict=True)}


def _class_accuracy(group: Group, view: str, name: str) -> float | None:
    shares = [(run.evaluation.get(view) or {}).get("per_class", {}).get(name) for run in group.runs]
    known = [100 * share for share in shares if share is not None]
    return mean_and_sd(known).mean if known else None


def response_title(shown: Response | None, found: Sequence[Difference]) -> str:
    """Heading of the pictures."""
    if shown is not None and shown.kind != "rows":
        return f"Top-1 over {' and '.join(shown.keys)}"
    return "Differences from the baseline" if found else "Top-1 of each setting"


def response_note(shown: Response | None, found: Sequence[Difference]) -> str:
    """How to read the pictures."""
    if shown is None:
        return ""
    if shown.kind == "curve":
        return "Dots are means over the seeds, hollow for the baseline; lines are 95 % intervals, small rings single seeds."
    if shown.kind == "map":
        return "Mean ± sd (n) over the seeds; the stronger the color, the higher the mean. Color shows no significance."
    what = "differences from the baseline in points" if found else "means"
    return (
        f"Dots are {what}, lines their 95 % intervals, small rings single seeds. An interval is of its own setting; which "
        "settings differ from the baseline, corrected for their number, is said in the table."
    )


def signatures(runs: Sequence[Run]) -> list[tuple[str, str, str, str, str]]:
    """Rows of (run, failure signature, steps, what it means, what to try), in the order of the runs."""
    return [
        (run.name, one.name, f"{one.since:,} to {one.until:,}", one.said, KNOBS[one.rule])
        for run in runs for one in run.signatures
    ]  # fmt: skip


def cost(runs: Sequence[Run]) -> str:
    """What training all runs took."""
    seconds = [run.seconds for run in runs if run.seconds is not None]
    clips = [run.clips for run in runs if run.clips is not None]
    if not seconds:
        return ""
    amount = f" on {sum(clips):,.0f} clips" if clips else ""
    of = "" if len(seconds) == len(runs) else f" in {len(seconds)} of them"
    return f"{hours_text(sum(seconds) / 3600)} hours of training{amount}{of}"
