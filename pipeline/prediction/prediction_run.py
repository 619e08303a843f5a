"""Predicts everything that a command names, from the first video to the complete output file; continued if it was killed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.errors import UserError, list_first
from pipeline.evaluation.rejection import Rejection
from pipeline.prediction.input_videos import InputVideo, compute_digest
from pipeline.prediction.predict_inputs import (
    CHUNK,
    CHUNK_ON_RAY,
    choose_prober,
    choose_scorer,
    predict_inputs,
)
from pipeline.prediction.prediction_parts import Parts
from pipeline.prediction.prediction_tables import SCHEMA, make_row, write_predictions
from pipeline.prediction.timeline import SEGMENT_SCHEMA, Windows, predict_timelines
from pipeline.progress import show_progress
from pipeline.ray_cluster.resources import Resources

Rows = list[dict[str, Any]]
"""The rows of the table that belong to one video: one, or one for each segment of a timeline."""
VERSION = 4
"""To be raised when the same command would write something else: parts of an earlier version are then not continued."""
FEW = 10
"""Up to so many videos no progress is shown."""
STATUSES = b"statuses"
"""Key of a part's metadata: how many videos have which status."""


@dataclass(frozen=True)
class PredictionRun:
    """What is predicted, by which model, and where the predictions go."""

    source: VideoSource
    """The model's clips, decode size, limits and class names; its manifest has no videos."""
    config: Config
    weights: Path
    inputs: Sequence[InputVideo]
    top: int
    """How many classes of each video the table names."""
    resources: Resources | None = None
    """What is reserved of a cluster; None: this process predicts."""
    out: Path | None = None
    windows: Windows | None = None
    """How long videos are divided; None: a video is one prediction."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Those of ``read_temperatures``, by which probabilities are calibrated."""
    rejection: Rejection | None = None
    """When a video is rejected as showing none of the known classes; None: that is not asked. Not with ``windows``."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return SCHEMA if self.windows is None else SEGMENT_SCHEMA

    @property
    def chunk(self) -> int:
        """How many videos are predicted together."""
        whole = CHUNK if self.resources is None else CHUNK_ON_RAY
        return whole if self.windows is None else whole // 8

    def compute_fingerprint(self) -> str:
        """Computes a hash of everything that the predictions depend on, but for the contents of the videos."""
        with self.weights.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        knobs = self.config.model_dump(mode="json", include={"data", "primary", "auxiliary", "evaluation", "train"})
        content = [VERSION, weights, knobs, self.source.manifest.classes, compute_digest(self.inputs), self.top, self.chunk]
        content.append(dict(self.temperatures))
        content.append(None if self.rejection is None else asdict(self.rejection))
        content.append(None if self.windows is None else asdict(self.windows))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def run(self, show: Callable[[int, Rows], None]) -> Counter[str]:
        """Predicts all videos, and writes the table if there is an output file. Returns how many videos have which status.

        ``show`` gets the number of each video among the inputs, from 0, and its rows, as it is predicted; first those of an
        interrupted command. Raises UserError if not one video has a prediction.
        """
        if self.out is None:
            return self._run(None, show)
        parts = Parts(self.out, self.compute_fingerprint())
        with parts.locked():
            statuses = self._run(parts, show)
            tables = (self._read(parts, chunk) for chunk in range(self._count_chunks()))
            about: dict[str, Any] = {"version": VERSION, "classes": list(self.source.manifest.classes)}
            manifests = {video.manifest.fingerprint if video.manifest else None for video in self.inputs}
            about |= {"manifest": manifests.pop()} if len(manifests) == 1 else {}  # None: the videos are of no manifest
            about["temperatures"] = dict(self.temperatures)
            about |= {"rejection": asdict(self.rejection)} if self.rejection else {}
            about["evaluation"] = self.config.evaluation.model_dump(mode="json")
            write_predictions(tables, self.out, self.schema, about, min(self.top, len(self.source.manifest.classes)))
            parts.delete()
        return statuses

    def _run(self, parts: Parts | None, show: Callable[[int, Rows], None]) -> Counter[str]:
        statuses: Counter[str] = Counter()
        missing = []
        for chunk in range(self._count_chunks()):
            table = parts.read(chunk, self.schema) if parts else None
            if table is None:
                missing.append(chunk)
            else:
                statuses.update(json.loads(table.schema.metadata[STATUSES]))
                for index, rows in enumerate(_split_by_video(table.to_pylist()), start=chunk * self.chunk):
                    show(index, rows)
        if done := statuses.total():
            print(f"note: {done} of {len(self.inputs)} videos were predicted by an earlier command", file=sys.stderr)
        failures: list[str] = []
        videos = self._predict(missing, parts)
        total = len(self.inputs) - done
        for index, rows in show_progress(videos, total, "predicted") if total > FEW else videos:
            statuses[rows[0]["status"]] += 1
            if rows[0]["status"] != "ok" and len(failures) < 100:
                failures.append(f"{rows[0]['file']}: {rows[0]['reason']}")
            show(index, rows)
        if not statuses["ok"]:
            if parts:
                parts.delete()
            raise UserError(f"none of the {len(self.inputs)} videos can be used:", list_first(failures))
        return statuses

    def _predict(self, chunks: Sequence[int], parts: Parts | None) -> Iterator[tuple[int, Rows]]:
        """Yields the number and the rows of each video of these chunks, and keeps each chunk that is complete."""
        if not chunks:
            return
        score = choose_scorer(self.source, self.config, self.weights, self.resources)
        probe = choose_prober(self.resources)
        classes, average = self.source.manifest.classes, self.config.evaluation.average
        for chunk in chunks:
            inputs = self.inputs[chunk * self.chunk : (chunk + 1) * self.chunk]
            if self.windows is not None:
                found: Iterator[Rows] = predict_timelines(
                    self.source, inputs, self.windows, average, score, probe, self.temperatures
                )
            else:
                predictions = predict_inputs(self.source, self.config, inputs, score, probe, self.temperatures)
                is_calibrated = "mean" in self.temperatures
                threshold = self.rejection.threshold if self.rejection else None
                found = ([make_row(prediction, classes, self.top, is_calibrated, threshold)] for prediction in predictions)
            kept: Rows = []
            statuses: Counter[str] = Counter()
            for index, rows in enumerate(found, start=chunk * self.chunk):
                statuses[rows[0]["status"]] += 1
                kept += rows if parts else []
                yield index, rows
            if parts:
                table = pa.Table.from_pylist(kept, schema=self.schema.with_metadata({STATUSES: json.dumps(statuses).encode()}))
                parts.write(chunk, table)

    def _count_chunks(self) -> int:
        return -(-len(self.inputs) // self.chunk)

    def _read(self, parts: Parts, chunk: int) -> pa.Table:
        table = parts.read(chunk, self.schema)
        assert table is not None, f"{parts.folder} lacks chunk {chunk}"
        return table


def _split_by_video(rows: Rows) -> Iterator[Rows]:
    """Splits the rows of a part by videos; the segments of a video are numbered from 0, and a row without a number is one."""
    edges = [index for index, row in enumerate(rows) if not row.get("segment")]
    for start, stop in pairwise([*edges, len(rows)]):
        yield rows[start:stop]


def describe_statuses(statuses: Counter[str]) -> str:
    """Describes how many videos were predicted, and why others were not, in one line."""
    failed = {status: count for status, count in sorted(statuses.items()) if status != "ok"}
    text = f"{statuses['ok']:,} of {statuses.total():,} videos predicted"
    return text + (f"; not predicted: {', '.join(f'{count:,} {status}' for status, count in failed.items())}" if failed else "")
