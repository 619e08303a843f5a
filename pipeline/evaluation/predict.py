"""Scores a split by both students, in this process; ``on_ray`` computes the same on a cluster."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline.clips.evaluation_views import decode_videos
from pipeline.clips.source import Columns, VideoSource
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.evaluation_summary import summarize
from pipeline.evaluation.parts import choose_parts_folder, choose_unit, delete_parts, keep_parts, read_parts
from pipeline.evaluation.protocol import collect_protocol, compute_clip_moments
from pipeline.evaluation.scorer import Block, Scorer, choose_batch_views
from pipeline.evaluation.video_scores import VideoScores, gather_videos, join_video_scores
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.processes.isolation import count_cores
from pipeline.progress import progress
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import PREDICTORS, write_text
from pipeline.seeds import Floats, Ints
from pipeline.stream.in_process import map_ahead

FEW_VIEWS = 256
"""The number of views that a process without a GPU scores before scoring actors on a cluster have started."""


def predict(source: VideoSource, config: Config, weights: Path, videos: Ints, resources: Resources | None) -> Columns:
    """Scores every view of the given manifest rows, and returns together what ``score_views`` yields.

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


def needs_cluster(config: Config, videos: int) -> bool:
    """Returns whether scoring so many videos is worth a Ray cluster: not with ``scale.workers=0``, and not for few views unless
    ``scale.gpu=true`` asks for a GPU that this machine does not have."""
    few = _count_views(config, videos) <= FEW_VIEWS and not (config.scale.gpu is True and not torch.cuda.is_available())
    return config.scale.workers > 0 and not few


def _is_for_cluster(config: Config, videos: int, resources: Resources | None) -> bool:
    return resources is not None and (resources.gpu or _count_views(config, videos) > FEW_VIEWS)


def _count_views(config: Config, videos: int) -> int:
    return videos * config.evaluation.clips * config.evaluation.crops


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
    videos = source.evaluation_rows(config.evaluation.split)
    parts = read_parts(parts_folder, videos) if parts_folder else []
    done = sum(map(len, parts))
    if done:
        print(f"note: {done} of {len(videos)} videos were scored before the evaluation was interrupted", file=sys.stderr)
    if done < len(videos):
        # as the whole evaluation would be computed, though fewer videos are left: the same bits
        where = resources if _is_for_cluster(config, len(videos), resources) else None
        scored = gather_videos(score_views(source, config, weights, videos[done:], where), config)
        if _count_views(config, len(videos)) > FEW_VIEWS:
            scored = progress(scored, len(videos), "evaluated", done=done, count=len)
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


def score(
    source: VideoSource, config: Config, weights: Path, resources: Resources | None, parts_folder: Path | None = None
) -> tuple[dict[str, Any], VideoScores]:
    """Computes the figures of the configured split. Also returns the scores of the videos that could be decoded."""
    scores = score_videos(source, config, weights, resources, parts_folder)
    usable = scores.decoded > 0
    shown = scores.select(usable)
    labels = source.columns["label"][shown.videos].astype(np.int64)
    lost = scores.videos[~usable]
    unusable, labeled = _list_unusable(source, config.evaluation.split)
    labeled += int((source.columns["label"][lost] >= 0).sum()) if len(lost) else 0
    summary = summarize(labels, shown.scores, list(source.manifest.classes), labeled) | {
        "clips": config.evaluation.clips,
        "crops": config.evaluation.crops,
        "split": config.evaluation.split,
        "protocol": collect_protocol(config),
        "weights_sha256": compute_sha256(weights),
        **_list_failures(source, config, scores),
        "unusable": unusable,
        "labeled_without_scores": labeled,
    }
    return summary, shown


def _list_failures(source: VideoSource, config: Config, scores: VideoScores) -> dict[str, dict[str, str]]:
    """Lists the videos of which no clip, and those of which only some clips were decoded, with the first reason."""
    failures: dict[str, dict[str, str]] = {"undecodable": {}, "partly_decoded": {}}
    for row, reason, decoded in zip(scores.videos.tolist(), scores.reasons, scores.decoded.tolist(), strict=True):
        if reason and decoded:
            failures["partly_decoded"][_name_video(source, row)] = f"{decoded} of {config.evaluation.clips} clips: {reason}"
        elif reason:
            failures["undecodable"][_name_video(source, row)] = reason
    return failures


def _list_unusable(source: VideoSource, split: str) -> tuple[dict[str, str], int]:
    """Lists the videos of a split that jobs.prepare found unusable, with the reason, and counts how many have a label."""
    if split == "validation" and len(source.held_out):
        return {}, 0  # these were taken from usable ones
    table = source.manifest.table
    of_split = pc.equal(table["split"], "test" if split == "test" else "val")
    rows = np.flatnonzero(pc.and_(of_split, pc.not_equal(table["status"], "ok")).to_numpy())
    columns = table.select(["status", "reason", "label"]).take(pa.array(rows)).to_pylist()
    reasons = {
        _name_video(source, int(row)): ": ".join(filter(None, (one["status"], one["reason"])))
        for row, one in zip(rows, columns, strict=True)
    }
    return reasons, sum(one["label"] is not None and one["label"] >= 0 for one in columns)


def _name_video(source: VideoSource, row: int) -> str:
    """Returns the path of a video and, if it is a part of a file, the part: a file may hold several videos."""
    path, table = source.manifest.locate(row), source.manifest.table
    start, end = table["start"][row].as_py(), table["end"][row].as_py()
    if start is None and end is None:
        return path
    return f"{path} ({start or 0:g} s to {'its end' if end is None else f'{end:g} s'})"


@dataclass(frozen=True)
class EvaluationFiles:
    """The files that an evaluation is written to, and what they say beside accuracies and scores."""

    folder: Path
    suffix: str = ""
    """The end of both files' names: ``_on_FINGERPRINT`` if another data set than the run's was evaluated."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """More entries for evaluation.json and the metadata of predictions.parquet."""

    @property
    def predictions(self) -> Path:
        """The path of the file of each video's scores."""
        return self.folder / f"predictions{self.suffix}.parquet"

    @property
    def evaluation(self) -> Path:
        """The path of the file of accuracies."""
        return self.folder / f"evaluation{self.suffix}.json"


def evaluate(
    source: VideoSource,
    config: Config,
    weights: Path,
    step: int,
    resources: Resources | None,
    files: EvaluationFiles | None = None,
    trained_steps: int | None = None,
) -> dict[str, Any]:
    """Scores the configured split, writes predictions.parquet and evaluation.json, and returns the latter's content.

    They are written to ``files``, by default into the run folder. ``step`` is that of the weights, and ``trained_steps`` that
    of the newest checkpoint, by default the same. Killed and called again, it continues where it was.
    """
    files = files or EvaluationFiles(config.run_folder)
    parts = choose_parts_folder(source, config, weights, source.evaluation_rows(config.evaluation.split), files.folder)
    summary, scores = score(source, config, weights, resources, parts)
    manifest = source.manifest
    data = {"manifest": manifest.path, "root": manifest.root, "source": manifest.source, "fingerprint": manifest.fingerprint}
    summary |= {"step": step, "trained_steps": trained_steps or step, "data": data, **files.about}
    _write_predictions(files, source, scores, {"step": step, "protocol": summary["protocol"]})
    write_text(files.evaluation, json.dumps(summary, indent=1))
    delete_parts(parts, with_other_weights=True)
    return summary


def _write_predictions(files: EvaluationFiles, source: VideoSource, scores: VideoScores, how: Mapping[str, Any]) -> None:
    table = source.manifest.table.select(["id", "uri", "class", "label"]).take(pa.array(scores.videos))
    for name in PREDICTORS:
        table = table.append_column(name, pa.array(list(scores.scores[name].astype(np.float32)), pa.list_(pa.float32())))
    for name in PREDICTORS:
        spread = scores.spreads[name]
        table = table.append_column(f"{name}_spread", pa.array(spread.astype(np.float32), mask=np.isnan(spread)))
    table = table.append_column("clips", pa.array(scores.decoded, pa.int32()))
    facts = {"classes": list(source.manifest.classes), "manifest": source.manifest.fingerprint, **how, **files.about}
    about = json.dumps(facts)
    scratch = files.folder / f".predictions.{uuid.uuid4().hex}"
    pq.write_table(table.replace_schema_metadata({b"actnetformer": about.encode()}), scratch)
    os.replace(scratch, files.predictions)
