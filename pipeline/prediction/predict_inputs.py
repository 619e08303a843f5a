"""Predicts the classes of any number of videos, a chunk of them at a time, and yields them in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.clips.source import Columns, VideoSource
from pipeline.config import STUDENTS, Config
from pipeline.evaluation.calibration import apply_temperatures
from pipeline.evaluation.protocol import combine_views, compute_clip_moments
from pipeline.evaluation.score_videos import score_in_process, score_views
from pipeline.evaluation.scorer import Scorer
from pipeline.manifest.schema import Manifest
from pipeline.prediction.file_manifest import ProbeLocations, make_manifest, probe_here
from pipeline.prediction.input_videos import InputVideo
from pipeline.ray_cluster.resources import Resources
from pipeline.seeds import Floats, Ints

NOT_FINITE = "not_finite"
"""Status of a video that was decoded, but for which the model computed no numbers."""
NO_TEMPERATURES: Mapping[str, float] = {}
"""Probabilities stay as the networks give them."""
CHUNK, CHUNK_ON_RAY = 64, 4096
"""Videos that are probed and scored together; a killed command loses at most as many."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one video."""

    video: InputVideo
    status: str
    """``ok``, or why there are no scores: a word of ``pipeline.video.status``, or ``NOT_FINITE``."""
    reason: str
    """The same in a sentence, or why a part of an ``ok`` video could not be decoded; else ""."""
    scores: dict[str, Floats]
    """[K] probabilities by ``PREDICTORS``; empty without scores."""

    @property
    def is_ok(self) -> bool:
        """Whether there are scores."""
        return bool(self.scores)


ScoreRows = Callable[[VideoSource, Ints], Iterable[Columns]]
"""Scores the views of rows of a source's manifest, and yields columns as ``score_views`` does."""


def choose_scorer(source: VideoSource, config: Config, weights: Path, resources: Resources | None) -> ScoreRows:
    """Chooses who scores: the cluster, or this process, which then loads the students once for all chunks."""
    if resources is not None:
        return lambda part, rows: score_views(part, config, weights, rows, resources)
    scorer = Scorer(config.model_dump(mode="json"), len(source.manifest.classes), str(weights))
    moments = compute_clip_moments(config.evaluation.clips)
    return lambda part, rows: score_in_process(part, scorer, rows, moments)


def choose_prober(resources: Resources | None) -> ProbeLocations:
    """Chooses who probes: tasks of the cluster, or processes of this machine."""
    if resources is None:
        return probe_here
    from pipeline.prepare.probe_on_ray import probe_on_ray  # only where scale.workers asks for Ray
    from pipeline.video.probe import ProbeOptions

    return lambda locations: probe_on_ray(locations, ProbeOptions(), lambda location: None)


def predict_inputs(
    source: VideoSource,
    config: Config,
    inputs: Sequence[InputVideo],
    score: ScoreRows,
    probe: ProbeLocations = probe_here,
    temperatures: Mapping[str, float] = NO_TEMPERATURES,
) -> Iterator[Prediction]:
    """Predicts one chunk of videos, and yields predictions in their order.

    The students' clips, the decode size, the limits and the class names are those of ``source``. ``temperatures`` are those of
    ``read_temperatures``.
    """
    manifest = make_manifest(inputs, source.manifest.classes, probe)
    rows = manifest.find_usable_rows("test")
    scored: dict[int, Prediction] = {}
    if len(rows):
        for row, views in group_by_row(score(replace(source, manifest=manifest), rows)):
            scored[row] = summarize_views(inputs[row], views, config.evaluation.average, temperatures)
    for row, video in enumerate(inputs):
        yield scored[row] if row in scored else describe_failure(video, manifest, row)


def describe_failure(video: InputVideo, manifest: Manifest, row: int) -> Prediction:
    """Describes a video that the probe found unusable."""
    status, reason = (str(manifest.table[name][row].as_py() or "") for name in ("status", "reason"))
    return Prediction(video, status, reason, {})


def group_by_row(parts: Iterable[Columns]) -> Iterator[tuple[int, Columns]]:
    """Yields all views of one manifest row after the other, as soon as they are complete; a part may end within a row."""
    kept: list[Columns] = []
    for part in parts:
        edges = [0, *(np.flatnonzero(np.diff(part["video"])) + 1).tolist(), len(part["video"])]
        for start, stop in pairwise(edges):
            views = {name: values[start:stop] for name, values in part.items()}
            if kept and kept[0]["video"][0] != views["video"][0]:
                yield _join(kept)
                kept = []
            kept.append(views)
    if kept:
        yield _join(kept)


def _join(parts: Sequence[Columns]) -> tuple[int, Columns]:
    return int(parts[0]["video"][0]), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summarize_views(
    video: InputVideo, views: Columns, average: str, temperatures: Mapping[str, float] = NO_TEMPERATURES
) -> Prediction:
    """Averages the scores of one video's views by ``evaluation.average``, and calibrates them. Views that could not be decoded
    are left out."""
    usable = views["reason"] == ""
    reasons = views["reason"][~usable].tolist()
    if not usable.any():
        return Prediction(video, "undecodable", str(reasons[0]), {})
    scores = {name: combine_views(views["video"], views[name], usable, average)[1][0] for name in STUDENTS}
    scores["mean"] = (scores["primary"] + scores["auxiliary"]) / 2
    if diverged := [name for name in STUDENTS if not np.isfinite(scores[name]).all()]:
        whose = f"the scores of the {' and the '.join(diverged)} student are not finite"
        return Prediction(video, NOT_FINITE, f"{whose}: its training may have diverged, or train.precision is too low", {})
    reason = f"{len(reasons)} of {len(usable)} views could not be decoded: {reasons[0]}" if reasons else ""
    return Prediction(video, "ok", reason, apply_temperatures(scores, temperatures))
