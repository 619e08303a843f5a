"""What happens when in a long video: windows of it are classified one after the other, and joined to segments of one class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.clips.source import VideoSource
from pipeline.errors import UserError
from pipeline.manifest.schema import SCHEMA, Manifest, compute_fingerprint
from pipeline.prediction.file_manifest import ProbeLocations, make_manifest, probe_here
from pipeline.prediction.input_videos import InputVideo
from pipeline.prediction.predict_inputs import NO_TEMPERATURES, Prediction, ScoreRows, group_by_row, summarize_views
from pipeline.seeds import Floats

SEGMENT_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("segment", pa.int32()),  # its number in the file, from 0
        ("start", pa.float64()),  # seconds of the file
        ("end", pa.float64()),
        ("class", pa.string()),
        ("confidence", pa.float64()),  # the mean probability of the class over the segment
        ("status", pa.string()),
        ("reason", pa.string()),
        ("calibrated", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Windows:
    """How a long video is divided."""

    seconds: float
    """Length of a window."""
    hop: float
    """Time from the start of a window to that of the next one."""

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.seconds < float("inf"):
            raise UserError(
                f"--window {self.seconds:g}s --hop {self.hop:g}s: both must be above 0, and the hop at most the window, "
                "so that no part of a video is left out"
            )


@dataclass(frozen=True)
class Segment:
    """A part of a video in which one class is the most probable."""

    start: float
    end: float
    """Seconds of the file."""
    label: int
    confidence: float
    """Mean probability of the class over the segment, 0..1."""


def parse_seconds(text: str, option: str) -> float:
    """Parses ``2s``, ``500ms``, ``1.5`` (seconds) or ``2min``. Raises UserError."""
    units = {"ms": 0.001, "min": 60.0, "s": 1.0, "": 1.0}
    unit = next(unit for unit in units if text.strip().endswith(unit))
    try:
        return float(text.strip().removesuffix(unit)) * units[unit]
    except ValueError:
        raise UserError(f"{option} {text}: write a time such as 2s, 500ms or 1min") from None


def place_windows(start: float, end: float, windows: Windows) -> list[tuple[float, float]]:
    """Places windows between ``start`` and ``end``, both in seconds. The last one ends at ``end``; a shorter video has one."""
    if end - start <= windows.seconds + 1e-9:
        return [(start, end)]
    count = int(np.ceil((end - start - windows.seconds) / windows.hop - 1e-9)) + 1
    starts = [start + index * windows.hop for index in range(count - 1)] + [end - windows.seconds]
    return [(begin, begin + windows.seconds) for begin in starts]


def join_segments(spans: Sequence[tuple[float, float]], scores_WK: Floats) -> list[Segment]:
    """Joins the probabilities of overlapping windows to segments.

    Between two neighboring edges of windows, the probabilities are the mean of those of all windows that cover the time: this
    is the smoothing, over twice the length of a window. Neighboring times with the same most probable class become a segment.
    """
    edges = np.unique(np.round(np.array(spans), 6))
    slots: list[tuple[float, float, Floats]] = []
    begins, ends = np.array(spans).T
    for start, end in pairwise(edges):
        covering = (begins <= start + 1e-5) & (ends >= end - 1e-5)
        if covering.any():
            slots.append((float(start), float(end), np.asarray(scores_WK[covering].mean(axis=0))))
    segments: list[list[tuple[float, float, Floats]]] = []
    for slot in slots:
        before = segments[-1][-1] if segments else None
        if before and before[1] == slot[0] and before[2].argmax() == slot[2].argmax():
            segments[-1].append(slot)
        else:
            segments.append([slot])
    return [_average_slots(part) for part in segments]


def _average_slots(slots: Sequence[tuple[float, float, Floats]]) -> Segment:
    label = int(slots[0][2].argmax())
    lengths = np.array([end - start for start, end, _ in slots])
    confidence = float(np.average([scores[label] for _, _, scores in slots], weights=lengths))
    return Segment(slots[0][0], slots[-1][1], label, confidence)


def predict_timelines(
    source: VideoSource,
    inputs: Sequence[InputVideo],
    windows: Windows,
    average: str,
    score: ScoreRows,
    probe: ProbeLocations = probe_here,
    temperatures: Mapping[str, float] = NO_TEMPERATURES,
) -> Iterator[list[dict[str, object]]]:
    """Predicts a timeline for each video, and yields the rows of ``SEGMENT_SCHEMA`` of one video after the other.

    ``average`` is ``evaluation.average``, by which the views of a window are averaged. ``temperatures`` calibrate each window
    like a video of its own. A video without a prediction has one row without a segment. Windows that cannot be decoded or
    scored are left out; their time belongs to the segments of the windows that overlap it, or to none.
    """
    files = make_manifest(inputs, source.manifest.classes, probe)
    owners, spans = _list_windows(files, windows)
    manifest = _make_window_manifest(files, owners, spans)
    scored: dict[int, dict[int, Floats]] = {}
    failures: dict[int, Prediction] = {}
    if owners:
        rows = np.arange(len(owners), dtype=np.int64)
        for row, views in group_by_row(score(replace(source, manifest=manifest), rows)):
            prediction = summarize_views(inputs[owners[row]], views, average, temperatures)
            if prediction.is_ok:
                scored.setdefault(owners[row], {})[row] = prediction.scores["mean"]
            else:
                failures.setdefault(owners[row], prediction)
    for index, video in enumerate(inputs):
        base: dict[str, object] = {**dict.fromkeys(SEGMENT_SCHEMA.names), "file": video.name, "status": "ok"}
        if found := scored.get(index):
            segments = join_segments([spans[row] for row in found], np.stack(list(found.values())))
            reason = failures[index].reason if index in failures else ""
            base |= {"reason": reason, "calibrated": "mean" in temperatures}
            yield list(_make_rows(base, segments, source.manifest.classes))
        elif index in failures:
            yield [base | {"status": failures[index].status, "reason": failures[index].reason}]
        else:
            status, reason = (files.table[name][index].as_py() or "" for name in ("status", "reason"))
            yield [base | {"status": status, "reason": reason}]


def _make_rows(base: dict[str, object], segments: Iterable[Segment], classes: Sequence[str]) -> Iterator[dict[str, object]]:
    for number, one in enumerate(segments):
        where = {"segment": number, "start": one.start, "end": one.end}
        yield {**base, **where, "class": classes[one.label], "confidence": one.confidence}


def _list_windows(files: Manifest, windows: Windows) -> tuple[list[int], list[tuple[float, float]]]:
    """Lists the windows of all usable files: which row of ``files`` each is of, and from when to when."""
    owners, spans = [], []
    columns = files.table.select(["status", "start", "end", "duration"]).to_pylist()
    for index, row in enumerate(columns):
        if row["status"] == "ok":
            placed = place_windows(row["start"] or 0.0, min(row["end"] or row["duration"], row["duration"]), windows)
            owners += [index] * len(placed)
            spans += placed
    return owners, spans


def _make_window_manifest(files: Manifest, owners: Sequence[int], spans: Sequence[tuple[float, float]]) -> Manifest:
    table = files.table.take(pa.array(owners, pa.int64()))
    columns = {
        "id": [f"{number:09d}" for number in range(len(owners))],
        "start": [start for start, _ in spans],
        "end": [end for _, end in spans],
    }
    for name, values in columns.items():
        field = SCHEMA.field(name)
        table = table.set_column(SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    return replace(files, table=table, fingerprint=compute_fingerprint(table, files.classes))
