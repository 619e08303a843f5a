"""Builds the sentences, caveats and small tables of the report's page, as plain values for its template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.comparison import BASELINE, Difference, Group
from pipeline.analysis.records.run_record import RunRecord, name_data
from pipeline.analysis.records.study_record import ReportInput, StudyRecord
from pipeline.analysis.response import Response
from pipeline.analysis.statistics import ALPHA, Estimate, format_p
from pipeline.evaluation.metrics import compute_confusion_matrix, compute_mean_and_sd, find_predicted_classes
from pipeline.report.parts.tables import format_hours, format_signed
from pipeline.run_folder.contents import PREDICTORS
from pipeline.training.monitoring.failure_signatures import KNOBS

NBSP = "\N{NO-BREAK SPACE}"
MOST_NAMED = 3
"""A sentence names at most so many settings."""


@dataclass(frozen=True)
class Headline:
    """The title of the page, the question that was asked, and the answer."""

    title: str
    question: str
    answer: str


def build_headline(given: ReportInput, groups: Sequence[Group], differences: Sequence[Difference]) -> Headline:
    """Builds the page's first sentences: the study's question, and the answer with its uncertainty."""
    title = _choose_title(given, groups, differences)
    question = next((study.question for study in given.studies if study.question), "") if len(given.studies) == 1 else ""
    best_trials = [describe_best_trial(study) for study in given.studies if study.is_search]
    if not groups:
        return Headline(title, question or "Which configuration is best?", " ".join(best_trials))
    answer = " ".join([_describe_answer(groups, differences), *best_trials]).replace("n = ", f"n{NBSP}={NBSP}")
    return Headline(title, question or _choose_question(groups, differences), answer)


def _choose_title(given: ReportInput, groups: Sequence[Group], differences: Sequence[Difference]) -> str:
    if given.studies and all(study.kind != "runs" for study in given.studies):
        names = [study.name.replace("_", " ").replace("-", " ") for study in given.studies]
        title = " and ".join(names) if len(names) < 3 else f"{len(names)} studies"
        return title[:1].upper() + title[1:]
    if len(differences) == 1:
        return f"{differences[0].group.label} against {differences[0].baseline.label}"
    if len(groups) == 1 and len(runs := groups[0].runs) == 1:
        return f"{runs[0].name}: {groups[0].label}"
    return " and ".join(group.label for group in groups) if len(groups) < 3 else f"{len(groups)} settings compared"


def _choose_question(groups: Sequence[Group], differences: Sequence[Difference]) -> str:
    if len(differences) == 1 and differences[0].baseline.method == BASELINE:
        label = differences[0].group.label
        return f"What does {label} gain over training on the labeled videos alone, with the same videos, labels and seeds?"
    split = name_splits(groups)
    if differences:
        base = differences[0].baseline.label
        return f"Which setting recognizes more {split} videos than {base}, on the same videos, labels and seeds?"
    return f"How many of the {split} videos are recognized?"


def name_splits(groups: Sequence[Group]) -> str:
    """Names the splits that the runs were evaluated on: ``test``, ``validation``, or both."""
    return " and ".join(sorted({run.split for group in groups for run in group.runs})) or "test"


def _describe_answer(groups: Sequence[Group], differences: Sequence[Difference]) -> str:
    evaluated = [group for group in groups if group.get_top1("mean")]
    if not evaluated:
        if len(groups) == 1 and (others := list(filter(None, map(_describe_other_data, groups[0].runs[0].other_data)))):
            return " ".join(others[:MOST_NAMED])
        return "Not known yet: " + ("the run was not evaluated." if len(groups) == 1 else "no run was evaluated.")
    if len(differences) == 1:
        return _describe_single_difference(differences[0])
    if differences:
        return _describe_differences(differences)
    if len(evaluated) > 1:
        parts = [f"{group.label} {_format_percent(group, 'mean')}" for group in evaluated[:6]]
        rest = f"; and {len(evaluated) - 6} more below" if len(evaluated) > 6 else ""
        return f"By the mean of both students: {'; '.join(parts)}{rest}. They share no seed and videos, so none is compared."
    group = evaluated[0]
    videos = next(run.evaluation["videos"] for run in group.runs if run.evaluation.get("videos"))
    return (
        f"Top-1 on {videos:,} videos: {_format_percent(group, 'mean')} by the mean of both students; "
        f"{_format_percent(group, 'primary')} by the primary, {_format_percent(group, 'auxiliary')} by the auxiliary alone."
    )


def _describe_other_data(evaluation: Mapping[str, Any]) -> str:
    """Describes the accuracies of an evaluation on other data; "" if its file does not tell them."""
    shares: list[Any] = [(evaluation.get(predictor) or {}).get("top1") for predictor in ("mean", "primary", "auxiliary")]
    if None in shares or not evaluation.get("videos"):
        return ""
    mean, primary, auxiliary = (f"{100 * share:.1f}{NBSP}%" for share in shares)
    videos = f"{evaluation['videos']:,} videos in {name_data(evaluation)}"
    return (
        f"Top-1 on {videos}: {mean} by the mean of both students; {primary} by the primary, {auxiliary} by the auxiliary alone."
    )


def _describe_single_difference(difference: Difference) -> str:
    points = difference.estimates["mean"]
    spread = "" if points.sd is None else f"{NBSP}±{NBSP}{points.sd:.1f}"
    seeds = f"{points.seeds} seed{'s' * (points.seeds > 1)}"
    ahead = sum(value > 0 for value in difference.compute_by_seed("mean").values())
    counted = f", ahead in {ahead} of {points.seeds}" if points.seeds > 1 else ""
    sides = zip(*difference.pairs, strict=True)
    ours, theirs = (compute_mean_and_sd([run.get_top1("mean") or 0.0 for run in runs]).mean for runs in sides)
    return (
        f"{format_signed(points.mean)}{spread} percentage points of top-1 ({seeds}{counted}){_format_interval(points)}: "
        f"{ours:.1f}{NBSP}% against {theirs:.1f}{NBSP}% for the mean of both students. {_describe_verdict(difference)}"
    )


def _describe_verdict(difference: Difference) -> str:
    text = difference.describe_verdict("mean")
    p = (
        f", p{NBSP}{format_p(difference.adjusted['mean'])}"
        if difference.estimates["mean"].seeds > 1 and difference.adjusted["mean"] is not None
        else ""
    )
    return text[:1].upper() + text[1:] + f"{p}."


def _describe_differences(differences: Sequence[Difference]) -> str:
    base = _name_baseline(differences)
    seeds = sorted({difference.estimates["mean"].seeds for difference in differences})
    n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
    distinguishable = [
        difference for difference in differences
        if difference.estimates["mean"].seeds > 1 and (p := difference.adjusted["mean"]) is not None and p <= ALPHA
    ]  # fmt: skip
    distinguishable.sort(key=lambda difference: -difference.estimates["mean"].mean)
    better = [difference for difference in distinguishable if difference.estimates["mean"].mean > 0]
    worse = [difference for difference in distinguishable[::-1] if difference.estimates["mean"].mean <= 0]
    parts = [f"{word} than {base}: {_list_by_name(part)}." for word, part in (("Better", better), ("Worse", worse)) if part]
    rest = len(differences) - len(distinguishable)
    if rest and seeds != [1]:
        parts.append(f"{'The other ' if distinguishable else 'None of the '}{rest} {_pluralize('setting', rest)} "
                     + (f"{'is' if rest == 1 else 'are'} not distinguishable from it at {n}." if distinguishable
                        else f"can be told from {base}: not distinguishable at {n}."))  # fmt: skip
    if seeds == [1]:
        parts.append(
            f"One seed of each of the {len(differences)} settings: none can be told from {base}, another seed may differ as "
            "much."
        )
    if not distinguishable:
        largest = max(differences, key=lambda difference: abs(difference.estimates["mean"].mean))
        parts.append(f"The largest difference is that of {_list_by_name([largest])}.")
    return " ".join(parts)


def _list_by_name(differences: Sequence[Difference]) -> str:
    texts = [
        f"{difference.group.label} by {format_signed(points.mean)} points{_format_interval(points)}"
        for difference in differences[:MOST_NAMED] for points in [difference.estimates["mean"]]
    ]  # fmt: skip
    return ", ".join(texts) + (f" and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else "")


def _name_baseline(differences: Sequence[Difference]) -> str:
    names = list(dict.fromkeys(difference.baseline.label for difference in differences))
    return names[0] if len(names) == 1 else BASELINE


def _pluralize(word: str, count: int) -> str:
    return word + "s" * (count != 1)


def _format_interval(points: Estimate) -> str:
    if points.low is None or points.high is None:
        return ""
    over = "" if points.over == "seeds and videos" else f" over {points.over}"
    low, high = format_signed(max(points.low, -100.0)), format_signed(min(points.high, 100.0))
    return f" [95{NBSP}%{over}: {low}{NBSP}to{NBSP}{high}]"


def _format_percent(group: Group, predictor: str) -> str:
    """Returns ``71.2 ± 1.1 % (3 seeds)`` with spaces at which no line breaks."""
    value = group.get_top1(predictor)
    if value is None:
        return "unknown"
    spread = "" if value.sd is None else f"{NBSP}±{NBSP}{value.sd:.1f}"
    return f"{value.mean:.1f}{spread}{NBSP}%" + (f" ({value.seeds}{NBSP}seeds)" if value.seeds > 1 else "")


def describe_best_trial(study: StudyRecord) -> str:
    """Describes the best trial of a search, and warns that the best of many trials is partly luck."""
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
    text = f"{100 * value:.1f}{NBSP}%" if lead.name in PREDICTORS else f"{value:.4g}"
    return (
        f"Best of {len(study.trials)} trials ({counts}): number {best.number}, {lead.name} {text}, with {chosen}. "
        "The best of many is partly luck: train it again with other seeds before it is believed."
    )


def list_caveats(groups: Sequence[Group], differences: Sequence[Difference], trials: Sequence[Group] = ()) -> list[str]:
    """Lists what a careful reader would ask about the numbers."""
    notes = []
    runs = [run for group in (*groups, *trials) for run in group.runs]
    sizes = sorted({run.evaluation["videos"] for run in runs if run.evaluation.get("videos")})
    if len(sizes) > 1:
        notes.append(f"The runs were tested on different numbers of videos: {', '.join(map(str, sizes))}.")
    if names := [run.name for run in runs if run.split != "test"]:
        many = "all runs" if len(names) == len(runs) else f"{len(names)} runs"
        which = ", ".join(names) if len(names) <= MOST_NAMED else many
        notes.append(f"Judged on validation videos, not on test ones: {which}.")
    if sizes and sizes[0] < 1000:
        which = name_splits((*groups, *trials))
        notes.append(f"With {sizes[0]} {which} videos, one video more or less is {100 / sizes[0]:.3g} points.")
    for group in groups:
        if group.repeats:
            repeats = ", ".join(run.name for run in group.repeats)
            notes.append(f"{group.label}: each seed counts once; not counted, for they repeat one: {repeats}.")
    notes += _list_caveats_of_pairs(groups, differences)
    if any(group.get_top1("mean") for group in groups) and all(len(group.runs) == 1 for group in groups):
        notes.append("One seed of each setting: how far another seed would land is unknown.")
    return notes


def _list_caveats_of_pairs(groups: Sequence[Group], differences: Sequence[Difference]) -> Iterable[str]:
    for difference in differences:
        if difference.baseline.method == BASELINE != difference.group.method:
            yield from (f"{difference.group.label} and {BASELINE} also differ in {what}." for what in difference.differences)
        paired = [ours for ours, _ in difference.pairs]
        if unpaired := [run.name for run in difference.group.runs if all(run is not ours for ours in paired)]:
            why = f"no evaluated {difference.baseline.label} run has the same seed, labels and videos"
            names = ", ".join(unpaired[:MOST_NAMED]) + " and more" * (len(unpaired) > MOST_NAMED)
            yield f"No difference for {names}: {why}, or it is not evaluated."
    if differences and any(difference.estimates["mean"].over == "seeds" for difference in differences):
        yield "Not every run has its predictions.parquet: intervals are over the seeds alone and wider than they need be."


def build_class_table(groups: Sequence[Group]) -> tuple[list[str], list[tuple[str, str, list[float | None]]]]:
    """Builds a table of accuracies in percent by class: column names, and rows of class, number of test videos and accuracies.

    A single group has a column for each student and one for their mean. Of several groups each has a column for the mean of
    the students, averaged over the seeds. There are no rows if nothing was evaluated.
    """
    evaluated = [group for group in groups if group.get_top1("mean")]
    if not evaluated:
        return [], []
    columns = [(predictor, evaluated[0], predictor) for predictor in PREDICTORS]
    if len(evaluated) > 1:
        columns = [(group.label, group, "mean") for group in evaluated]
    classes = next(run for run in evaluated[0].runs if run.evaluation).evaluation["classes"]
    totals = _count_class_videos(evaluated, classes)
    values = {name: [_compute_class_accuracy(group, predictor, name) for _, group, predictor in columns] for name in classes}
    return [name for name, _, _ in columns], [(name, totals.get(name, ""), values[name]) for name in classes]


def count_confusions(group: Group) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """Returns the confusion matrix [K, K] (row = true class) of the students' mean, and the classes; None without predictions.

    The counts are summed over the runs of the group that have the same classes.
    """
    predictions = [run.predictions for run in group.runs if run.predictions is not None]
    predictions = [item for item in predictions if item.classes == predictions[0].classes]
    if not predictions:
        return None
    matrices = [
        compute_confusion_matrix(p.labels, find_predicted_classes(p.scores["mean"]), len(p.classes)) for p in predictions
    ]
    return np.sum(matrices, axis=0), predictions[0].classes


def find_largest_errors(counts: NDArray[np.int64], classes: Sequence[str], limit: int = 8) -> list[tuple[str, str, int, int]]:
    """Finds the largest errors: (true class, predicted class, count, number of videos of the true class)."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    cells = [divmod(int(cell), len(classes)) for cell in order]
    return [(classes[a], classes[b], int(wrong[a, b]), int(counts[a].sum())) for a, b in cells if wrong[a, b]]


def count_quarantined(runs: Sequence[RunRecord], limit: int = 50) -> tuple[list[tuple[str, str, str, int]], int]:
    """Counts how often each video was skipped because it could not be decoded, the most frequent first.

    Returns up to ``limit`` rows of (run, video, reason, times), and how many rows were left out.
    """
    records = [(run.name, record) for run in runs for record in run.quarantine]
    counted = Counter((name, str(record.get("uri", "?")), str(record.get("reason", "?"))) for name, record in records)
    rows = [(*key, times) for key, times in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    return rows[:limit], max(len(rows) - limit, 0)


def _count_class_videos(groups: Sequence[Group], classes: Sequence[str]) -> dict[str, str]:
    predictions = next((run.predictions for group in groups for run in group.runs if run.predictions is not None), None)
    if predictions is None or list(predictions.classes) != list(classes):
        return {}
    counts = np.bincount(predictions.labels[predictions.labels >= 0], minlength=len(classes))
    return {name: f"{count:,}" for name, count in zip(classes, counts, strict=True)}


def _compute_class_accuracy(group: Group, predictor: str, name: str) -> float | None:
    shares = [(run.evaluation.get(predictor) or {}).get("per_class", {}).get(name) for run in group.runs]
    known = [100 * share for share in shares if share is not None]
    return compute_mean_and_sd(known).mean if known else None


def choose_response_title(shown: Response | None, differences: Sequence[Difference]) -> str:
    """Chooses the heading of the plots of accuracy against what was varied."""
    if shown is not None and shown.kind != "rows":
        return f"Top-1 over {' and '.join(shown.keys)}"
    return "Differences from the baseline" if differences else "Top-1 of each setting"


def explain_response(shown: Response | None, differences: Sequence[Difference]) -> str:
    """Explains how to read these plots."""
    if shown is None:
        return ""
    if shown.kind == "curve":
        return "Dots are means over the seeds, hollow for the baseline; lines are 95 % intervals, small rings single seeds."
    if shown.kind == "map":
        return "Mean ± sd (n) over the seeds; the stronger the color, the higher the mean. Color shows no significance."
    what = "differences from the baseline in points" if differences else "means"
    return (
        f"Dots are {what}, lines their 95 % intervals, small rings single seeds. An interval is of its own setting; which "
        "settings differ from the baseline, corrected for their number, is said in the table."
    )


def list_signatures(runs: Sequence[RunRecord]) -> list[tuple[str, str, str, str, str]]:
    """Lists (run, failure signature, steps, what it means, what to try), in the order of the runs."""
    return [
        (run.name, finding.name, f"{finding.since:,} to {finding.until:,}", finding.evidence, KNOBS[finding.rule])
        for run in runs for finding in run.signatures
    ]  # fmt: skip


def describe_training_time(runs: Sequence[RunRecord]) -> str:
    """Describes how long training all runs took, and on how many clips."""
    seconds = [run.seconds for run in runs if run.seconds is not None]
    clips = [run.clips for run in runs if run.clips is not None]
    if not seconds:
        return ""
    amount = f" on {sum(clips):,.0f} clips" if clips else ""
    of = "" if len(seconds) == len(runs) else f" in {len(seconds)} of them"
    return f"{format_hours(sum(seconds) / 3600)} hours of training{amount}{of}"
