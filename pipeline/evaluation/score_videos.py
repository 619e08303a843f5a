"""Scores videos: both students' class probabilities, in this process, or by ``on_ray`` on a cluster.

To score is to compute probabilities. ``pipeline.evaluation.evaluate`` compares them with labels, and ``pipeline.prediction``
names classes by them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.clips.source import Columns, VideoSource
from pipeline.clips.whole_videos import decode_videos
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.evaluation_parts import choose_unit, delete_parts, keep_parts, read_parts
from pipeline.evaluation.protocol import compute_clip_moments
from pipeline.evaluation.scorer import Block, Scorer, choose_batch_views
from pipeline.evaluation.video_scores import VideoScores, gather_videos, join_video_scores
from pipeline.processes.isolation import count_cores
from pipeline.progress import show_progress
from pipeline.ray_cluster.resources import Resources
from pipeline.seeds import Floats, Ints
from pipeline.stream.in_process import map_ahead

FEW_VIEWS = 256
"""The number of views that a process without a GPU scores before scoring actors on a cluster have started."""


def score_all_views(source: VideoSource, config: Config, weights: Path, videos: Ints, resources: Resources | None) -> Columns:
    """Scores every view of the given manifest rows, and returns as one what ``score_views`` yields in batches.

    With ``resources`` it is done on the cluster, unless there are few views.
    """
    where = resources if _is_for_cluster(config, len(videos), resources) else None
    parts = list(score_views(source, config, weights, videos, where))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_views(
    source: VideoSource, config: Config, weights: Path, videos: Ints, resources: Resources | None
) -> Iterator[Columns]:
    """Scores every view of the given manifest rows in their order, and yields batches of views while later ones are computed:
    ``video`` and ``reason`` [n], and both students' scores [n, K].

    A video's file is opened once for all of its views. With ``resources`` it is done on the cluster, else in this process.
    """
    rows, moments = np.asarray(videos, dtype=np.int64), compute_clip_moments(config.evaluation.clips)
    scorer = config.model_dump(mode="json"), len(source.manifest.classes), str(weights)
    if resources is None:
        yield from score_in_process(source, Scorer(*scorer), rows, moments)
        return
    from pipeline.evaluation.on_ray import score_on_ray  # only where scale.workers asks for Ray

    yield from score_on_ray(source, resources, scorer, rows, moments, _count_block_videos(config, resources))


def is_worth_cluster(config: Config, num_videos: int) -> bool:
    """Returns whether scoring ``num_videos`` is worth a Ray cluster: not with ``scale.workers=0``, and not for few views unless
    ``scale.gpu=true`` asks for a GPU that this machine does not have."""
    few = _count_views(config, num_videos) <= FEW_VIEWS and not (config.scale.gpu is True and not torch.cuda.is_available())
    return config.scale.workers > 0 and not few


def _is_for_cluster(config: Config, num_videos: int, resources: Resources | None) -> bool:
    return resources is not None and (resources.gpu or _count_views(config, num_videos) > FEW_VIEWS)


def _count_views(config: Config, num_videos: int) -> int:
    return num_videos * config.evaluation.clips * config.evaluation.crops


def _count_block_videos(config: Config, resources: Resources) -> int:
    """Counts the videos that a decode task of a cluster decodes."""
    return max(1, choose_batch_views(config, resources.gpu) // _count_views(config, 1))


def score_in_process(source: VideoSource, scorer: Scorer, videos: Ints, moments: Floats) -> Iterator[Columns]:
    """Yields the scores of the videos' test views in their order; threads on all cores decode, a video each."""

    def decode(video: int) -> Block:
        return scorer.prepare_block(decode_videos(source, np.array([video]), moments))

    yield from scorer.score_videos(map_ahead(decode, videos.tolist(), ahead=count_cores()))


def score_videos(
    source: VideoSource, config: Config, weights: Path, resources: Resources | None, parts_folder: Path | None = None
) -> VideoScores:
    """Scores all videos of the configured split; memory holds their averaged scores, and few views at a time.

    Scores of the first videos are kept in ``parts_folder`` meanwhile, if it is given: a killed evaluation continues there, to
    the same scores. Raises UserError if no video can be decoded.
    """
    videos = source.find_evaluation_rows(config.evaluation.split)
    parts = read_parts(parts_folder, videos) if parts_folder else []
    done = sum(map(len, parts))
    if done:
        print(f"note: {done} of {len(videos)} videos were scored before the evaluation was interrupted", file=sys.stderr)
    if done < len(videos):
        # as the whole evaluation would be computed, though fewer videos are left: the same bits
        where = resources if _is_for_cluster(config, len(videos), resources) else None
        scored = gather_videos(score_views(source, config, weights, videos[done:], where), config)
        if _count_views(config, len(videos)) > FEW_VIEWS:
            scored = show_progress(scored, len(videos), "evaluated", done=done, count=len)
        if parts_folder:
            block = _count_block_videos(config, where) if where else 1
            gpu = where.gpu if where else torch.cuda.is_available()
            unit = choose_unit(choose_batch_views(config, gpu), _count_views(config, 1), block)
            parts += keep_parts(scored, parts_folder, done, unit)
        else:
            parts += scored
    scores = join_video_scores(parts)
    if not scores.decoded.any():
        if parts_folder:
            delete_parts(parts_folder)
        split = config.evaluation.split
        raise UserError(f"none of the {len(videos)} {split} videos can be decoded; the first: {scores.reasons[0]}")
    return scores
