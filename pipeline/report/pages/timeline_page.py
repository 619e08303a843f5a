"""The page of timelines: of each video small frames, below them what happens when, and a table of its segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.clips.decode import DecodeError
from pipeline.clips.source import VideoSource
from pipeline.config import ClipSection
from pipeline.prediction.file_manifest import make_manifest
from pipeline.prediction.input_videos import InputVideo
from pipeline.report.parts.html import SORTING, encode_image, hash_script, render_page, write_page
from pipeline.report.parts.tables import Cell, Table, build_percent_cell

MOST_VIDEOS = 50
"""Videos on a page: each one's frames take about 40 KB."""
FRAMES, SIDE = 12, 90
"""Frames of a video, and their shorter side in pixels."""
COLORS = 8
"""Series colors of report.css; classes that come later begin again with the first."""


@dataclass(frozen=True)
class Bar:
    """A segment as it is drawn."""

    label: str
    left: float
    width: float
    """In percent of the timeline."""
    color: int
    tip: str


@dataclass(frozen=True)
class Timeline:
    """One video on the page."""

    name: str
    frames: Sequence[str]
    """``data:image/jpeg`` URIs, evenly spaced in time."""
    problem: str
    """Why there is no prediction, or no frames."""
    start: float
    end: float
    """Seconds of the file."""
    bars: Sequence[Bar]
    table: Table | None


def write_timeline_page(
    source: VideoSource, inputs: Sequence[InputVideo], rows: Mapping[int, Sequence[Mapping[str, Any]]], path: Path
) -> None:
    """Writes the page completely or not at all. Raises UserError if it cannot be written.

    ``rows`` are the table's rows by the number of the input. The first ``MOST_VIDEOS`` are shown.
    """
    shown = sorted(rows)[:MOST_VIDEOS]
    colors: dict[str, int] = {}
    for index in shown:
        for row in rows[index]:
            if row["class"]:
                colors.setdefault(str(row["class"]), len(colors) % COLORS)
    timelines = [build_timeline(source, inputs[index], rows[index], colors) for index in shown]
    context = {
        "timelines": timelines, "colors": colors, "left_out": len(rows) - len(shown), "script": SORTING,
        "script_hash": hash_script(SORTING),
    }  # fmt: skip
    write_page(render_page("timeline.html.j2", context), path.expanduser().resolve(), "--html")


def build_timeline(
    source: VideoSource, video: InputVideo, rows: Sequence[Mapping[str, Any]], colors: Mapping[str, int]
) -> Timeline:
    """Builds what the page shows of one video."""
    segments = [row for row in rows if row["class"]]
    if not segments:
        return Timeline(video.name, (), str(rows[0]["reason"]), 0.0, 0.0, (), None)
    frames, start, end, problem = read_small_frames(source, video)
    if problem:
        start, end = float(segments[0]["start"]), float(segments[-1]["end"])
    length = max(end - start, 1e-6)
    bars = [
        Bar(
            label=str(row["class"]),
            left=100 * (float(row["start"]) - start) / length,
            width=100 * (float(row["end"]) - float(row["start"])) / length,
            color=colors[str(row["class"])],
            tip=f"{row['class']}, {row['start']:.1f} to {row['end']:.1f} s, confidence {row['confidence']:.0%}",
        )
        for row in segments
    ]
    cells = tuple(
        (Cell(str(row["class"]), str(row["class"])), Cell(f"{row['start']:.1f}", row["start"]),
         Cell(f"{row['end']:.1f}", row["end"]), build_percent_cell(100 * float(row["confidence"])))
        for row in segments
    )  # fmt: skip
    table = Table(("class", "from (s)", "to (s)", "confidence %"), (False, True, True, True), cells, "")
    return Timeline(video.name, frames, problem or str(rows[0]["reason"] or ""), start, end, bars, table)


def read_small_frames(source: VideoSource, video: InputVideo) -> tuple[list[str], float, float, str]:
    """Reads evenly spaced frames of a video in one pass. Returns their data URIs, the seconds at which the video begins and
    ends, and why there are none, or ""."""
    clip = ClipSection(sampling="segments", frames=FRAMES, fps=None, size=SIDE)
    manifest = make_manifest([video], source.manifest.classes)
    view = replace(source, manifest=manifest, clips=(clip, clip), size=SIDE)
    status, reason = (manifest.table[name][0].as_py() for name in ("status", "reason"))
    if status != "ok":  # the file was removed or damaged after it was predicted
        return [], 0.0, 0.0, f"no frames: {reason or status}"
    about = view.describe_video(0)
    try:
        frames_NHWC, (shown, _) = view.decode_moments(0, [0.5])
    except DecodeError as error:
        return [], 0.0, 0.0, f"no frames: {error}"
    return [encode_image(frames_NHWC[index]) for index in shown[0]], about.start, about.end, ""
