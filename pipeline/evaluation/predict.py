"""Scores of both students on a split, by threads of this process; ``on_ray`` computes the same on a cluster."""

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
from pipeline.clips.source import Columns, Source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import summarize
from pipeline.evaluation.protocol import average_views, clip_moments
from pipeline.evaluation.scorer import Block, Scorer, views_at_once
from pipeline.methods import STUDENTS
from pipeline.processes.isolation import count_cores
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import write_text
from pipeline.seeds import Floats, Ints
from pipeline.stream.in_process import map_ahead

FEW_VIEWS = 256
"""As many, without a GPU, are scored in this process before scoring actors have started."""


def predict(source: Source, config: Config, weights: Path, videos: Ints, resources: Resources | None) -> Columns:
    """Scores of every view of the given manifest rows: ``video``, ``reason`` [n] and both students' [n, K].

    A video's file is opened once for all of its views. On the cluster with ``resources``; in this process without, and for a
    few views.
    """
    rows, moments = np.asarray(videos, dtype=np.int64), clip_moments(config.evaluation.clips)
    scorer = config.model_dump(mode="json"), len(source.manifest.classes), str(weights)
    if resources is None or (not resources.gpu and _num_views(config, len(rows)) <= FEW_VIEWS):
        parts = score_here(source, Scorer(*scorer), rows, moments)
    else:
        from pipeline.evaluation.on_ray import score_on_ray  # only where scale.workers asks for Ray

        size = max(1, views_at_once(config, resources.gpu) // _num_views(config, 1))
        parts = score_on_ray(source, resources, scorer, rows, moments, size)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def needs_cluster(config: Config, videos: int) -> bool:
    """Whether scores of so many videos are worth a Ray cluster: not with ``scale.workers=0``, and not for a few views, unless
    ``scale.gpu=true`` asks for a GPU that this machine does not have."""
    few = _num_views(config, videos) <= FEW_VIEWS and not (config.scale.gpu is True and not torch.cuda.is_available())
    return config.scale.workers > 0 and not few


def _num_views(config: Config, videos: int) -> int:
    return videos * config.evaluation.clips * config.evaluation.crops


def score_here(source: Source, scorer: Scorer, videos: Ints, moments: Floats) -> list[Columns]:
    """Scores of the videos' test views in their order: threads decode, a video each, on all cores."""

    def decode(video: int) -> Block:
        return scorer.block(decode_videos(source, np.array([video]), moments))

    return list(scorer.score_videos(map_ahead(decode, videos.tolist(), ahead=count_cores())))


def score(
    source: Source, config: Config, weights: Path, resources: Resources | None
) -> tuple[dict[str, Any], Ints, dict[str, Floats]]:
    """Accuracies on the configured split; also the manifest rows that could be decoded and each view's [n, K] scores."""
    split = config.evaluation.split
    videos = source.evaluated(split)
    columns = predict(source, config, weights, videos, resources)
    usable = columns["reason"] == ""
    if not usable.any():
        raise UserError(f"none of the {len(videos)} {split} videos can be decoded; the first: {columns['reason'][0]}")
    scores = {name: average_views(columns["video"], columns[name], usable) for name in STUDENTS}
    kept = scores["primary"][0]
    values = {name: scores[name][1] for name in STUDENTS}
    values["mean"] = (values["primary"] + values["auxiliary"]) / 2
    failed = {source.manifest.locate(int(v)): str(r) for v, r in zip(columns["video"], columns["reason"], strict=True) if r}
    labels = source.columns["label"][kept].astype(np.int64)
    protocol = {"clips": config.evaluation.clips, "crops": config.evaluation.crops, "split": split}
    summary = summarize(labels, values, list(source.manifest.classes)) | {**protocol, "undecodable": failed}
    known = np.flatnonzero(labels >= 0)
    for name, scores_NK in values.items():  # finer than accuracy, in which small validation sets tie
        given = np.nan_to_num(scores_NK[known, labels[known]])
        summary[name]["true_probability"] = float(given.mean()) if len(known) else None
    return summary, kept, values


@dataclass(frozen=True)
class Results:
    """Where an evaluation is written, and what it says beside accuracies and scores."""

    folder: Path
    suffix: str = ""
    """Of both files' names: ``_on_FINGERPRINT`` where another data set than the run's was evaluated."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Into evaluation.json and the metadata of predictions.parquet."""

    @property
    def predictions(self) -> Path:
        """Scores of each video."""
        return self.folder / f"predictions{self.suffix}.parquet"

    @property
    def evaluation(self) -> Path:
        """Accuracies."""
        return self.folder / f"evaluation{self.suffix}.json"


def evaluate(
    source: Source, config: Config, weights: Path, step: int, resources: Resources | None, results: Results | None = None
) -> dict[str, Any]:
    """Write predictions.parquet and evaluation.json into the run folder, or as ``results`` says; returns the accuracies."""
    results = results or Results(config.run_folder)
    summary, kept, values = score(source, config, weights, resources)
    manifest = source.manifest
    data = {"manifest": manifest.path, "root": manifest.root, "source": manifest.source, "fingerprint": manifest.fingerprint}
    summary |= {"step": step, "data": data, **results.about}
    _write_predictions(results, source, kept, values)
    write_text(results.evaluation, json.dumps(summary, indent=1))
    return summary


def _write_predictions(
    results: Results, source: Source, rows: np.ndarray[Any, Any], values: dict[str, np.ndarray[Any, Any]]
) -> None:
    table = source.manifest.table.select(["id", "uri", "class", "label"]).take(pa.array(rows))
    for name, scores in values.items():
        table = table.append_column(name, pa.array(list(scores.astype(np.float32)), pa.list_(pa.float32())))
    facts = {"classes": list(source.manifest.classes), "manifest": source.manifest.fingerprint, **results.about}
    about = json.dumps(facts)
    scratch = results.folder / f".predictions.{uuid.uuid4().hex}"
    pq.write_table(table.replace_schema_metadata({b"actnetformer": about.encode()}), scratch)
    os.replace(scratch, results.predictions)
