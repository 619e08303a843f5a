"""Chooses unlabeled videos of a run that people should label next."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clips.source import VideoSource, open_source
from pipeline.config import override
from pipeline.errors import UserError
from pipeline.labeling.measures import Floats
from pipeline.labeling.opinions import (
    MIN_CLIPS,
    Opinions,
    PredictedScores,
    Scores,
    TrainingScores,
    read_opinions,
    read_probabilities,
)
from pipeline.labeling.small_clips import SmallClip, are_near_duplicates, decode_small_clips
from pipeline.labeling.strategies import DIVERSE, Strategy, choose_balanced, choose_diverse, count_pool, rank_videos
from pipeline.lifecycle.saved_run import check_inputs
from pipeline.manifest.label_subset import LabelSubset
from pipeline.manifest.schema import Manifest
from pipeline.run_folder.contents import read_run
from pipeline.seeds import Ints

TOP = 9
"""Classes that are offered for a video: as many as there are keys for."""
SPARE = 4
"""Where near-duplicates are left out, so many times as many videos are chosen first."""
MAX_READ = 20_000
"""Videos whose probabilities of all classes are in memory at once, at the most."""
COLUMNS = ("id", "uri", "score", "reason", "primary", "primary_probability", "auxiliary", "auxiliary_probability")
"""Columns of suggest.csv."""


@dataclass(frozen=True)
class Wish:
    """What the user asks for."""

    count: int
    strategy: Strategy = "mixed"
    seed: int = 0
    balanced: bool = False
    """Equally many of each predicted class."""
    skip_groups: bool = False
    """Leave out videos of a group (recording or person) that has a label already."""
    skip_duplicates: bool = False
    """Leave out videos that look like a labeled or a chosen one."""


@dataclass(frozen=True)
class Suggestion:
    """A video to label."""

    row: int
    """Of the manifest."""
    id: str
    uri: str
    score: float
    """0..1 by the strategy's measure; larger means more uncertain."""
    reason: str
    primary: tuple[str, float]
    """The class that the primary finds most probable, and its probability."""
    auxiliary: tuple[str, float]
    offered: tuple[tuple[str, float], ...]
    """The most probable classes by the mean of both, with their probabilities, the students' own guesses among them."""
    clip: SmallClip = field(default_factory=lambda: SmallClip("", np.zeros(0, np.bool_), "not decoded"))


@dataclass(frozen=True)
class Suggestions:
    """What a run suggests."""

    run: Path
    source: VideoSource
    labels_path: str
    """The label subset that the run was trained with."""
    videos: tuple[Suggestion, ...]
    notes: tuple[str, ...]
    """What the user should know about the choice."""


@dataclass(frozen=True)
class ChosenVideos:
    """The videos that a run suggests, best first."""

    rows: Ints
    """[C] rows of the manifest."""
    scores: Floats
    """[C] the strategy's measure of each, 0..1."""
    probabilities: Floats
    """[C, 2, K] class probabilities of both students."""
    opinions: Opinions
    source: VideoSource
    labels: LabelSubset
    labels_path: str
    """The label subset that the run was trained with."""
    notes: tuple[str, ...]


def suggest_videos(folder: Path, wish: Wish, predictions: Path | None = None, overrides: Sequence[str] = ()) -> Suggestions:
    """Chooses the videos that a run suggests to label, best first, and decodes their animations. Raises UserError."""
    folder = folder.expanduser().resolve()
    spare = SPARE if wish.skip_duplicates else 1
    chosen = choose_videos(folder, replace(wish, count=wish.count * spare), predictions, overrides)
    manifest, notes = chosen.source.manifest, list(chosen.notes)
    suggestions = [
        _describe(manifest, chosen.opinions, wish.strategy, *video)
        for video in zip(chosen.rows, chosen.scores, chosen.probabilities, strict=True)
    ]
    shown, left_out = _decode(chosen.source, chosen.labels, suggestions, wish)
    if left_out:
        notes.append(f"{left_out} near-duplicates of labeled or chosen videos are left out")
    if len(shown) < wish.count:
        notes.append(f"only {len(shown)} of the {wish.count} videos asked for can be suggested")
    return Suggestions(folder, chosen.source, chosen.labels_path, tuple(shown), tuple(notes))


def choose_videos(folder: Path, wish: Wish, predictions: Path | None = None, overrides: Sequence[str] = ()) -> ChosenVideos:
    """Chooses the videos that a run suggests to label, as many as there are up to ``wish.count``; nothing is decoded, so
    near-duplicates are not left out. Raises UserError."""
    folder = folder.expanduser().resolve()
    trained, _ = read_run(folder)
    config = override(trained.model_dump(mode="json"), overrides, source=f"{folder / 'config.yaml'}")
    check_inputs(folder / "config.yaml", config)
    source, labels = open_source(config)
    manifest = source.manifest
    scores: Scores = TrainingScores(folder) if predictions is None else PredictedScores(predictions, manifest)
    if predictions is not None and wish.strategy == "unstable":
        raise UserError("--strategy unstable needs the scores that training saved; leave out --predictions")
    opinions = read_opinions(scores, manifest.table.num_rows)
    candidates, notes = _find_candidates(source, labels, opinions, wish, scores)
    order, weights = rank_videos(wish.strategy, opinions, candidates, wish.seed)
    chosen = _choose(scores, wish, order, weights, min(wish.count, len(order)), manifest.table.num_rows)
    return ChosenVideos(*chosen, opinions, source, labels, config.labels_path, tuple(notes))


def _find_candidates(
    source: VideoSource, labels: LabelSubset, opinions: Opinions, wish: Wish, scores: Scores
) -> tuple[Ints, list[str]]:
    """Finds the unlabeled videos of which there are scores. Raises UserError if there are none."""
    unlabeled = source.plan.unlabeled
    seen = unlabeled[opinions.clips[unlabeled] > 0]
    notes = []
    if len(seen) < len(unlabeled):
        missing = len(unlabeled) - len(seen)
        notes.append(
            f"{missing:,} of {len(unlabeled):,} unlabeled videos have no scores in {scores.what} and cannot be suggested; for "
            f"all: jobs.predict RUN {source.manifest.path} --out scores.parquet, and then --predictions scores.parquet"
        )
    if wish.strategy == "unstable":
        often = seen[opinions.clips[seen] >= MIN_CLIPS]
        notes += [f"{len(seen) - len(often):,} videos have less than {MIN_CLIPS} scored clips, and are left out"]
        seen = often
    if wish.skip_groups:
        groups = source.manifest.table["group"]
        known = {group for group in groups.take(pa.array(np.union1d(labels.rows, labels.held_out))).to_pylist() if group}
        keep = np.array([group not in known for group in groups.take(pa.array(seen)).to_pylist()], np.bool_)
        notes.append(f"{int((~keep).sum()):,} videos are of a group that has a label, and left out")
        seen = seen[keep]
    if len(seen) == 0:
        raise UserError(f"no unlabeled video is left to suggest: {'; '.join(notes) or 'all videos have a label'}")
    return seen, notes


def _choose(
    scores: Scores, wish: Wish, order: Ints, weights: Floats, wanted: int, num_videos: int
) -> tuple[Ints, Floats, Floats]:
    """Chooses rows by the strategy; returns them, best first, with their scores and probabilities [C, 2, K]."""
    pool = len(order) if wish.balanced else wanted
    if wish.strategy in DIVERSE:
        pool = max(wanted, count_pool(wish.strategy, wanted))
    pool = min(pool, len(order), MAX_READ)
    order, weights = order[:pool], weights[:pool]
    probabilities = read_probabilities(scores, order, num_videos)
    ranked = list(range(pool))
    if wish.strategy in DIVERSE:
        importance = weights if wish.strategy == "mixed" else np.ones(pool)
        ranked = choose_diverse(probabilities, importance, pool if wish.balanced else wanted, wish.seed)
    if wish.balanced:
        predicted = probabilities.mean(axis=1).argmax(axis=1)
        ranked = [ranked[index] for index in choose_balanced(ranked, predicted[ranked].tolist(), wanted)]
    chosen = np.asarray(ranked[:wanted], np.int64)
    return order[chosen], weights[chosen], probabilities[chosen]


def _describe(
    manifest: Manifest, opinions: Opinions, strategy: Strategy, row: int, score: float, probabilities_2K: Floats
) -> Suggestion:
    row, mean = int(row), probabilities_2K.mean(axis=0)
    guesses = [(manifest.classes[int(own.argmax())], float(own.max())) for own in probabilities_2K]
    own_guesses = {int(own.argmax()) for own in probabilities_2K}
    others = [int(index) for index in np.argsort(-mean, kind="stable") if int(index) not in own_guesses]
    best = sorted([*own_guesses, *others][:TOP], key=lambda index: -mean[index])
    offered = tuple((manifest.classes[index], float(mean[index])) for index in best)
    table = manifest.table
    reason = _explain(guesses, opinions, strategy, row)
    video_id, uri = str(table["id"][row].as_py()), str(table["uri"][row].as_py())
    return Suggestion(row, video_id, uri, float(score), reason, guesses[0], guesses[1], offered)


def _explain(guesses: Sequence[tuple[str, float]], opinions: Opinions, strategy: Strategy, row: int) -> str:
    """Says in a few words why a video was chosen."""
    (first, p), (second, q) = guesses
    changes = opinions.changes[row]
    if strategy == "random":
        return "drawn by chance"
    if strategy == "unstable":
        return f"its class changed at {changes:.0%} of {int(opinions.clips[row])} clips during training"
    if first != second:
        return f"the students disagree: {first} ({p:.0%}) or {second} ({q:.0%})"
    if min(p, q) < 0.5:
        return f"unsure: {first} ({p:.0%} and {q:.0%})"
    if strategy == "diverse":
        return f"differs from the others: {first} ({p:.0%} and {q:.0%})"
    return f"less sure than of others: {first} ({p:.0%} and {q:.0%})"


def _decode(
    source: VideoSource, labels: LabelSubset, suggestions: Sequence[Suggestion], wish: Wish
) -> tuple[list[Suggestion], int]:
    """Adds the animations, and leaves out near-duplicates if that was asked for. Returns how many were left out, too."""
    known: list[SmallClip] = []
    if wish.skip_duplicates:
        videos = [source.describe_video(int(row)) for row in np.union1d(labels.rows, labels.held_out)]
        known = [clip for _, clip in decode_small_clips(videos)]
    clips: dict[int, SmallClip] = dict(decode_small_clips([source.describe_video(video.row) for video in suggestions]))
    shown: list[Suggestion] = []
    left_out = 0
    for index, video in enumerate(suggestions):
        if len(shown) == wish.count:
            break
        if wish.skip_duplicates and any(are_near_duplicates(clips[index], other) for other in known):
            left_out += 1
            continue
        known += [clips[index]] if wish.skip_duplicates else []
        shown.append(Suggestion(**{**video.__dict__, "clip": clips[index]}))
    return shown, left_out


def format_table(videos: Sequence[Suggestion]) -> str:
    """Formats suggest.csv, best first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for video in videos:
        guesses = [cell for name, share in (video.primary, video.auxiliary) for cell in (name, f"{share:.4f}")]
        writer.writerow([video.id, video.uri, f"{video.score:.4f}", video.reason, *guesses])
    return buffer.getvalue()
