"""Scores of both students on a split: decode tasks -> scoring actors on a cluster, threads in one process."""

from __future__ import annotations

import json
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from safetensors.torch import load_file

from pipeline.clips.modalities import derive
from pipeline.clips.seeds import Floats, Ints
from pipeline.clips.source import Columns, Source
from pipeline.clips.stream import Grid, map_ahead, ray_views, told_by_task
from pipeline.clips.views import center_views
from pipeline.config import Config, parse_config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import summarize
from pipeline.evaluation.protocol import average_views, view_grid
from pipeline.manifest.isolation import num_cores
from pipeline.methods import STUDENTS, build_students
from pipeline.resources import Resources
from pipeline.run_folder import write_text

FEW_VIEWS = 256
"""As many, without a GPU, are scored in this process before scoring actors have started."""


class Scorer:
    """Both students of a checkpoint; called with decoded views, returns their softmax scores."""

    def __init__(self, tree: dict[str, Any], num_classes: int, weights: str, threads: int | None = None) -> None:
        self.config = parse_config(tree)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if threads:
            torch.set_num_threads(threads)
        self.students = build_students(self.config, num_classes)
        stored = {key.partition("."): value for key, value in load_file(weights).items()}
        # the running means if there are any; no projection heads, label statistics and teachers, which are for training only
        wanted = "students" if self.config.train.ema_decay is None else "averages"
        kept = {key: value for (room, _, key), value in stored.items() if room == wanted and ".projection." not in key}
        self.students.load_state_dict(kept)
        self.students.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, columns: Columns) -> Columns:
        """``video`` [n], ``reason`` [n], and [n, K] float32 scores of ``primary`` and ``auxiliary``."""
        scores = {}
        for name in STUDENTS:
            clips = torch.from_numpy(np.array(columns[name])).to(self.device)
            clip = getattr(self.config, name).clip
            logits_NK, _ = self.students[name](derive(center_views(clips, clip.size), clip.modality))
            scores[name] = logits_NK.float().softmax(dim=1).cpu().numpy()
        return {"video": columns["video"], "reason": columns["reason"], **scores}


class BlockScorer(Scorer):
    """The same of a block of the stream, which is a single row of Ray's."""

    def __call__(self, columns: Columns) -> Columns:
        """[1, n, ...] in, [1, n, ...] out."""
        scores = super().__call__({name: values[0] for name, values in columns.items()})
        return {name: np.asarray(values)[None] for name, values in scores.items()}


def predict(source: Source, config: Config, weights: Path, videos: Ints, resources: Resources | None) -> Columns:
    """Scores of every view of the given manifest rows: ``video``, ``reason`` [n] and both students' [n, K].

    On the cluster with ``resources``, in this process without, and for a few views.
    """
    grid = view_grid(np.asarray(videos, dtype=np.int64), config.evaluation.clips, config.evaluation.crops)
    size = config.evaluation.batch_videos
    score = partial(Scorer, config.model_dump(mode="json"), len(source.manifest.classes), str(weights))
    if resources is None or (not resources.gpu and len(grid[0]) <= FEW_VIEWS):
        parts = _here(source, score, grid, size)
    else:
        parts = _on_ray(source, resources, score, grid, size)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _here(source: Source, score: Any, grid: Grid, size: int) -> list[Columns]:
    videos, moments, windows = grid
    blocks = [slice(start, start + size) for start in range(0, len(videos), size)]

    def decode(block: slice) -> Columns:
        return source.views(videos[block], moments[block], windows[block])

    return list(map(score(), map_ahead(decode, blocks, ahead=num_cores())))


def _on_ray(source: Source, resources: Resources, score: Any, grid: Grid, size: int) -> list[Columns]:
    scores = ray_views(source, grid, size, resources).map_batches(
        BlockScorer,
        fn_constructor_args=score.args,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=resources.workers),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.worker.get("GPU", 0),
        **({"label_selector": resources.train_labels} if resources.train_labels else {}),
    )
    parts = scores.iter_batches(batch_size=None, batch_format="numpy")  # in order: sums of scores are the same bits every time
    try:
        return [{name: values[0] for name, values in part.items()} for part in parts]
    except ray.exceptions.RayError as error:
        raise told_by_task(error) or error from None


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
    failed = {source.manifest.location(int(v)): str(r) for v, r in zip(columns["video"], columns["reason"], strict=True) if r}
    labels = source.columns["label"][kept].astype(np.int64)
    protocol = {"clips": config.evaluation.clips, "crops": config.evaluation.crops, "split": split}
    summary = summarize(labels, values, list(source.manifest.classes)) | {**protocol, "undecodable": failed}
    known = np.flatnonzero(labels >= 0)
    for name, scores_NK in values.items():  # finer than accuracy, in which small validation sets tie
        given = np.nan_to_num(scores_NK[known, labels[known]])
        summary[name]["true_probability"] = float(given.mean()) if len(known) else None
    return summary, kept, values


def evaluate(source: Source, config: Config, weights: Path, step: int, resources: Resources | None) -> dict[str, Any]:
    """Write predictions.parquet and evaluation.json into the run folder; returns the latter's content."""
    summary, kept, values = score(source, config, weights, resources)
    summary["step"] = step
    _write_predictions(config.run_folder, source, kept, values)
    write_text(config.run_folder / "evaluation.json", json.dumps(summary, indent=1))
    return summary


def _write_predictions(
    folder: Path, source: Source, rows: np.ndarray[Any, Any], values: dict[str, np.ndarray[Any, Any]]
) -> None:
    table = source.manifest.table.select(["id", "uri", "class", "label"]).take(pa.array(rows))
    for name, scores in values.items():
        table = table.append_column(name, pa.array(list(scores.astype(np.float32)), pa.list_(pa.float32())))
    about = json.dumps({"classes": list(source.manifest.classes), "manifest": source.manifest.fingerprint})
    scratch = folder / f".predictions.{uuid.uuid4().hex}"
    pq.write_table(table.replace_schema_metadata({b"actnetformer": about.encode()}), scratch)
    os.replace(scratch, folder / "predictions.parquet")
