"""Evaluates a split: scores its videos, compares scores and labels, and writes evaluation.json and predictions.parquet."""

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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.evaluation.evaluation_parts import choose_parts_folder, delete_parts
from pipeline.evaluation.evaluation_summary import summarize
from pipeline.evaluation.protocol import collect_protocol
from pipeline.evaluation.score_videos import score_videos
from pipeline.evaluation.video_scores import VideoScores
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import PREDICTORS, write_text


def evaluate_split(
    source: VideoSource, config: Config, weights: Path, resources: Resources | None, parts_folder: Path | None = None
) -> tuple[dict[str, Any], VideoScores]:
    """Scores the configured split and computes its figures; writes nothing but parts. Returns the content of evaluation.json as
    far as scores and labels tell it, and the scores of the videos that could be decoded."""
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
    """Evaluates the configured split by ``evaluate_split``, writes predictions.parquet and evaluation.json, and returns the
    latter's content.

    They are written to ``files``, by default into the run folder. ``step`` is that of the weights, and ``trained_steps`` that
    of the newest checkpoint, by default the same. Killed and called again, it continues where it was.
    """
    files = files or EvaluationFiles(config.run_folder)
    parts = choose_parts_folder(source, config, weights, source.find_evaluation_rows(config.evaluation.split), files.folder)
    summary, scores = evaluate_split(source, config, weights, resources, parts)
    manifest = source.manifest
    data = {"manifest": manifest.path, "root": manifest.root, "source": manifest.source, "fingerprint": manifest.fingerprint}
    summary |= {"step": step, "trained_steps": trained_steps or step, "data": data, **files.about}
    _write_predictions(files, source, scores, {"step": step, "protocol": summary["protocol"]})
    write_text(files.evaluation, json.dumps(summary, indent=1))
    delete_parts(parts, with_other_weights=True)
    return summary


def _write_predictions(files: EvaluationFiles, source: VideoSource, scores: VideoScores, how: Mapping[str, Any]) -> None:
    table = source.manifest.table.select(["id", "uri", "class", "label"]).take(pa.array(scores.videos))
    if source.given_labels:  # people gave some videos another class than the manifest has
        labels = source.columns["label"][scores.videos].astype(np.int32)
        names = [source.manifest.classes[label] if label >= 0 else None for label in labels]
        table = table.set_column(2, "class", pa.array(names, pa.string())).set_column(3, "label", pa.array(labels))
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
