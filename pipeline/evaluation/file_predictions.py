"""Predicts the classes of files that no manifest lists: they are probed as by jobs.prepare and scored like test videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.errors import UserError, list_first
from pipeline.evaluation.predict import predict
from pipeline.evaluation.protocol import combine_views
from pipeline.manifest.schema import Manifest, Split, compute_fingerprint, sort_by_id
from pipeline.methods import STUDENTS
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing
from pipeline.ray_cluster.resources import Resources
from pipeline.seeds import Floats, Ints
from pipeline.video.probe import probe_files


@dataclass(frozen=True)
class FilePrediction:
    """The students' class scores of one file."""

    file: str
    reason: str
    """Why there are no scores, or ""."""
    scores: dict[str, Floats]
    """[K] softmax scores, averaged over views, of ``primary``, ``auxiliary`` and their ``mean``."""


def list_as_manifest(files: Sequence[str], classes: Sequence[str]) -> Manifest:
    """Makes a manifest in memory that lists these files as test videos without labels. Raises UserError for a file named twice.
    """
    uris = tuple(_to_uri(file) for file in files)
    if twice := sorted({uri for uri in uris if uris.count(uri) > 1}):
        raise UserError("files are named twice:", list_first(twice))
    nothing = (None,) * len(uris)
    splits: tuple[Split, ...] = tuple("test" for _ in uris)
    listing = Listing(os.getcwd(), "files", uris, nothing, nothing, splits, class_list=tuple(classes))
    table = sort_by_id(build_table(listing, probe_files(list(uris))))
    return Manifest(table, tuple(classes), listing.root, listing.source, compute_fingerprint(table, classes), "the files")


def predict_files(
    source: VideoSource, config: Config, weights: Path, files: Sequence[str], resources: Resources | None
) -> list[FilePrediction]:
    """Scores every file by the run's test protocol, and returns predictions in the order of ``files``.

    The students' clips, the decode size, the limits and the class names are taken from ``source``, the run's. Raises UserError
    if no file can be used.
    """
    manifest = list_as_manifest(files, source.manifest.classes)
    reasons = {str(uri): str(reason) for uri, reason in zip(*_columns(manifest, "uri", "reason"), strict=True)}
    rows = manifest.usable_rows("test")
    scores: dict[int, dict[str, Floats]] = {}
    if len(rows):
        file_source = replace(source, manifest=manifest)
        columns = predict(file_source, config, weights, rows, resources)
        usable = columns["reason"] == ""
        for row, reason in zip(columns["video"].tolist(), columns["reason"].tolist(), strict=True):
            reasons[manifest.locate(row)] = reason
        views = {name: columns[name] for name in STUDENTS}
        scores = _average_by_row(columns["video"], views, usable, config.evaluation.average)
    if not scores:
        raise UserError(f"none of the {len(files)} files can be used:", list_first([f"{k}: {v}" for k, v in reasons.items()]))
    by_uri = {manifest.locate(row): values for row, values in scores.items()}
    uris = [_to_uri(file) for file in files]
    return [
        FilePrediction(file, "" if uri in by_uri else reasons[uri], by_uri.get(uri, {}))
        for file, uri in zip(files, uris, strict=True)
    ]


def _to_uri(file: str) -> str:
    return file if "://" in file else str(Path(file).resolve())


def _columns(manifest: Manifest, *names: str) -> list[list[object]]:
    return [manifest.table[name].to_pylist() for name in names]


def _average_by_row(
    videos: Ints, views: dict[str, Floats], usable: np.ndarray[tuple[int], np.dtype[np.bool_]], average: str
) -> dict[int, dict[str, Floats]]:
    averaged = {name: combine_views(videos, scores_NK, usable, average) for name, scores_NK in views.items()}
    rows = averaged["primary"][0]
    values = {name: scores_VK for name, (_, scores_VK) in averaged.items()}
    values["mean"] = (values["primary"] + values["auxiliary"]) / 2
    return {int(row): {name: scores_VK[index] for name, scores_VK in values.items()} for index, row in enumerate(rows)}


def write_file_predictions(predictions: Sequence[FilePrediction], classes: Sequence[str], path: Path) -> None:
    """Writes a Parquet file: ``file``, ``reason``, ``class`` by the mean of both students, and scores of each student and the
    mean; null for files without scores."""
    rows = []
    for prediction in predictions:
        best = classes[int(prediction.scores["mean"].argmax())] if prediction.scores else None
        scores = {name: prediction.scores[name].tolist() if prediction.scores else None for name in (*STUDENTS, "mean")}
        rows.append({"file": prediction.file, "reason": prediction.reason, "class": best, **scores})
    kinds = {"file": pa.string(), "reason": pa.string(), "class": pa.string()}
    kinds |= {name: pa.list_(pa.float32()) for name in (*STUDENTS, "mean")}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), path)
