"""Scores a split by both students, in this process; ``on_ray`` computes the same on a cluster."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.clips.evaluation_views import decode_videos
from pipeline.clips.source import Columns, VideoSource
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import summarize
from pipeline.evaluation.protocol import average_views, compute_clip_moments
from pipeline.evaluation.scorer import Block, Scorer, choose_batch_views
from pipeline.methods import STUDENTS
from pipeline.processes.isolation import count_cores
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import write_text
from pipeline.seeds import Floats, Ints
from pipeline.stream.in_process import map_ahead

FEW_VIEWS = 256
"""The number of views that a process without a GPU scores before scoring actors on a cluster have started."""


def predict(source: VideoSource, config: Config, weights: Path, videos: Ints, resources: Resources | None) -> Columns:
    """Scores every view of the given manifest rows: returns ``video`` and ``reason`` [n], and both students' scores [n, K].

    A video's file is opened once for all of its views. With ``resources`` it is done on the cluster, unless there are few
    views; otherwise in this process.
    """
    rows, moments = np.asarray(videos, dtype=np.int64), compute_clip_moments(config.evaluation.clips)
    scorer = config.model_dump(mode="json"), len(source.manifest.classes), str(weights)
    if resources is None or (not resources.gpu and _count_views(config, len(rows)) <= FEW_VIEWS):
        parts = score_in_process(source, Scorer(*scorer), rows, moments)
    else:
        from pipeline.evaluation.on_ray import score_on_ray  # only where scale.workers asks for Ray

        size = max(1, choose_batch_views(config, resources.gpu) // _count_views(config, 1))
        parts = score_on_ray(source, resources, scorer, rows, moments, size)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def needs_cluster(config: Config, videos: int) -> bool:
    """Returns whether scoring so many videos is worth a Ray cluster: not with ``scale.workers=0``, and not for few views unless
    ``scale.gpu=true`` asks for a GPU that this machine does not have."""
    few = _count_views(config, videos) <= FEW_VIEWS and not (config.scale.gpu is True and not torch.cuda.is_available())
    return config.scale.workers > 0 and not few


def _count_views(config: Config, videos: int) -> int:
    return videos * config.evaluation.clips * config.evaluation.crops


def score_in_process(source: VideoSource, scorer: Scorer, videos: Ints, moments: Floats) -> list[Columns]:
    """Scores the videos' test views in their order; threads on all cores decode, a video each."""

    def decode(video: int) -> Block:
        return scorer.prepare_block(decode_videos(source, np.array([video]), moments))

    return list(scorer.score_videos(map_ahead(decode, videos.tolist(), ahead=count_cores())))


def score(
    source: VideoSource, config: Config, weights: Path, resources: Resources | None
) -> tuple[dict[str, Any], Ints, dict[str, Floats]]:
    """Computes accuracies on the configured split. Also returns the manifest rows of the n videos that could be decoded, and
    their scores [n, K] by each student and the mean."""
    split = config.evaluation.split
    videos = source.evaluation_rows(split)
    columns = predict(source, config, weights, videos, resources)
    usable = columns["reason"] == ""
    if not usable.any():
        raise UserError(f"none of the {len(videos)} {split} videos can be decoded; the first: {columns['reason'][0]}")
    scores = {name: average_views(columns["video"], columns[name], usable) for name in STUDENTS}
    rows = scores["primary"][0]
    values = {name: scores[name][1] for name in STUDENTS}
    values["mean"] = (values["primary"] + values["auxiliary"]) / 2
    failed = {source.manifest.locate(int(v)): str(r) for v, r in zip(columns["video"], columns["reason"], strict=True) if r}
    labels = source.columns["label"][rows].astype(np.int64)
    protocol = {"clips": config.evaluation.clips, "crops": config.evaluation.crops, "split": split}
    summary = summarize(labels, values, list(source.manifest.classes)) | {**protocol, "undecodable": failed}
    known = np.flatnonzero(labels >= 0)
    for name, scores_NK in values.items():  # finer than accuracy, in which small validation sets tie
        of_true_class = np.nan_to_num(scores_NK[known, labels[known]])
        summary[name]["true_probability"] = float(of_true_class.mean()) if len(known) else None
    return summary, rows, values


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
) -> dict[str, Any]:
    """Scores the configured split, writes predictions.parquet and evaluation.json, and returns the latter's content.

    They are written to ``files``, by default into the run folder.
    """
    files = files or EvaluationFiles(config.run_folder)
    summary, rows, values = score(source, config, weights, resources)
    manifest = source.manifest
    data = {"manifest": manifest.path, "root": manifest.root, "source": manifest.source, "fingerprint": manifest.fingerprint}
    summary |= {"step": step, "data": data, **files.about}
    _write_predictions(files, source, rows, values)
    write_text(files.evaluation, json.dumps(summary, indent=1))
    return summary


def _write_predictions(
    files: EvaluationFiles, source: VideoSource, rows: np.ndarray[Any, Any], values: dict[str, np.ndarray[Any, Any]]
) -> None:
    table = source.manifest.table.select(["id", "uri", "class", "label"]).take(pa.array(rows))
    for name, scores in values.items():
        table = table.append_column(name, pa.array(list(scores.astype(np.float32)), pa.list_(pa.float32())))
    facts = {"classes": list(source.manifest.classes), "manifest": source.manifest.fingerprint, **files.about}
    about = json.dumps(facts)
    scratch = files.folder / f".predictions.{uuid.uuid4().hex}"
    pq.write_table(table.replace_schema_metadata({b"actnetformer": about.encode()}), scratch)
    os.replace(scratch, files.predictions)
