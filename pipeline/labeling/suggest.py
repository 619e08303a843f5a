"""Chooses unlabeled videos of a run that people should label next."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.clips.source import VideoSource
from pipeline.labeling.candidates import Wish
from pipeline.labeling.measures import Floats
from pipeline.labeling.opinions import Opinions
from pipeline.labeling.ranking import rank_candidates
from pipeline.labeling.small_clips import NearDuplicates, SmallClip, decode_small_clips
from pipeline.labeling.strategies import Strategy
from pipeline.manifest.labeling_answers import guard
from pipeline.manifest.schema import Manifest

TOP = 9
"""Classes that are offered for a video: as many as there are keys for."""
SPARE = 4
"""Where near-duplicates leave too few, so many times as many videos as are asked for are looked at next."""
COLUMNS = ("id", "uri", "score", "reason", "primary", "primary_probability", "auxiliary", "auxiliary_probability")
"""Columns of suggest.csv."""


@dataclass(frozen=True)
class Suggestion:
    """A video to label."""

    row: int
    """The video's row in the manifest."""
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
    clip: SmallClip = field(default_factory=lambda: SmallClip("", np.zeros(0, np.bool_), problem="not decoded"))


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


def suggest_videos(folder: Path, wish: Wish, predictions: Path | None = None, overrides: Sequence[str] = ()) -> Suggestions:
    """Chooses the videos that a run suggests to label, best first, and decodes their animations. Raises UserError."""
    folder = folder.expanduser().resolve()
    ranking = rank_candidates(folder, wish, predictions, overrides)
    source, notes = ranking.source, list(ranking.notes)
    known = NearDuplicates()
    if wish.skip_duplicates:
        videos = [source.describe_video(int(row)) for row in np.union1d(ranking.labels.rows, ranking.labels.held_out)]
        known.add(clip for _, clip in decode_small_clips(videos))
    shown: list[Suggestion] = []
    looked_at: set[int] = set()
    left_out, wanted = 0, wish.count
    while len(shown) < wish.count:
        chosen = list(zip(*ranking.choose(wanted), strict=True))
        new = [video for video in chosen if int(video[0]) not in looked_at]
        looked_at |= {int(row) for row, *_ in new}
        clips = dict(decode_small_clips([source.describe_video(int(row)) for row, *_ in new]))
        for index, video in enumerate(new):
            if wish.skip_duplicates and known.has(clips[index]):
                left_out += 1
            elif len(shown) < wish.count:
                known.add([clips[index]])
                described = describe_candidate(source.manifest, int(video[0]), *video[1:])
                reason = _explain(described, ranking.opinions, wish.strategy)
                shown.append(replace(described, reason=reason, clip=clips[index]))
        if len(chosen) < wanted:
            break
        wanted += SPARE * wish.count  # further down the ranking, past the near-duplicates
    notes += _describe_marks(shown, ranking.opinions, wish.strategy, source.manifest)
    if left_out:
        notes.append(f"{left_out} near-duplicates of labeled or chosen videos are left out")
    if len(shown) < wish.count:
        notes.append(f"only {len(shown)} of the {wish.count} videos asked for can be suggested")
    return Suggestions(folder, source, ranking.labels_path, tuple(shown), tuple(notes))


def describe_candidate(
    manifest: Manifest, row: int, score: float, probabilities_2K: Floats, also: Sequence[int] = (), reason: str = ""
) -> Suggestion:
    """Describes a video with the guesses of both students, [2, K] probabilities; the classes ``also`` are offered, too."""
    mean, guesses = probabilities_2K.mean(axis=0), guess_classes(manifest, probabilities_2K)
    asked = {*also, *(int(own.argmax()) for own in probabilities_2K)}
    others = [int(index) for index in np.argsort(-mean, kind="stable") if int(index) not in asked]
    best = sorted([*sorted(asked), *others][:TOP], key=lambda index: -mean[index])
    offered = tuple((manifest.classes[index], float(mean[index])) for index in best)
    video_id, uri = (str(manifest.table[name][row].as_py()) for name in ("id", "uri"))
    return Suggestion(row, video_id, uri, float(score), reason, guesses[0], guesses[1], offered)


def guess_classes(manifest: Manifest, probabilities_2K: Floats) -> list[tuple[str, float]]:
    """Returns the most probable class of each student, with its probability."""
    return [(manifest.classes[int(own.argmax())], float(own.max())) for own in probabilities_2K]


NEW_CLASS = "new class?"
"""The mark of videos that seem to show none of the classes."""


def _describe_marks(videos: Sequence[Suggestion], opinions: Opinions, strategy: Strategy, manifest: Manifest) -> list[str]:
    """Notes how many of the videos are marked as showing something new, or, if that is what they are chosen for, why none
    can be."""
    if opinions.rejected is not None:
        marked = sum(bool(opinions.rejected[video.row]) for video in videos)
        why = "jobs.predict rejected them as none of the known classes"
        return [f'{marked} of {len(videos)} videos are marked "{NEW_CLASS}": {why}']
    if strategy != "unfamiliar":
        return []
    predict = f"jobs.predict RUN {manifest.path} --reject-unknown 5% --out scores.parquet"
    return [
        f'no video is marked "{NEW_CLASS}", because that takes held-out videos: {predict}, and --predictions scores.parquet'
    ]


def _explain(video: Suggestion, opinions: Opinions, strategy: Strategy) -> str:
    """Says in a few words why a video was chosen, and marks it if it seems to show none of the classes."""
    is_new = opinions.rejected is not None and bool(opinions.rejected[video.row])
    return f"{NEW_CLASS} {_explain_choice(video, opinions, strategy)}" if is_new else _explain_choice(video, opinions, strategy)


def _explain_choice(video: Suggestion, opinions: Opinions, strategy: Strategy) -> str:
    (first, p), (second, q) = video.primary, video.auxiliary
    if strategy == "random":
        return "drawn by chance"
    if strategy == "unstable":
        return (
            f"its class changed at {opinions.changes[video.row]:.0%} of {int(opinions.clips[video.row])} clips during training"
        )
    if strategy == "unfamiliar":
        return f"like none of the classes: the most probable one has {1 - video.score:.0%}"
    if first != second:
        return f"the students disagree: {first} ({p:.0%}) or {second} ({q:.0%})"
    if min(p, q) < 0.5:
        return f"unsure: {first} ({p:.0%} and {q:.0%})"
    if strategy == "diverse":
        return f"differs from the others: {first} ({p:.0%} and {q:.0%})"
    return f"less sure than of others: {first} ({p:.0%} and {q:.0%})"


def format_table(videos: Sequence[Suggestion]) -> str:
    """Formats suggest.csv, best first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for video in videos:
        guesses = [cell for name, share in (video.primary, video.auxiliary) for cell in (guard(name), f"{share:.4f}")]
        writer.writerow([guard(video.id), guard(video.uri), f"{video.score:.4f}", guard(video.reason), *guesses])
    return buffer.getvalue()
