"""A manifest as a page: counts, histograms, thumbnails of a few videos of every class, and the files that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.clips.decode import DecodeError, Video, decode_clips
from pipeline.clips.source import describe_video, open_video_columns
from pipeline.config import ClipSection
from pipeline.manifest.schema import OTHER_CLASS, Manifest
from pipeline.manifest.seeded_order import order_by_hash
from pipeline.manifest.summary import Summary
from pipeline.processes.isolation import ProcessFailure, map_in_processes
from pipeline.progress import show_progress
from pipeline.report.parts.html import encode_image, render_page, write_page

SIDE, MAX_LISTED = 112, 1000
"""The side of a square thumbnail in pixels, and the number of files and of duplicates that a page lists at most."""


@dataclass(frozen=True)
class Thumbnail:
    """The middle frame of a video."""

    id: str
    split: str
    seconds: float
    """When it is shown, from the start of the file."""
    image: str
    """A data URI; empty if ``problem`` says why there is none."""
    problem: str = ""


def write_contact_sheet(
    manifest: Manifest, summary: Summary, path: Path, per_class: int, changed: Sequence[tuple[str, str]] | None = None
) -> None:
    """Writes the page. A hash of the ids decides which videos are shown; ``changed`` lists the files that ``verify`` found
    changed."""
    context = {
        "manifest": manifest,
        "summary": summary,
        "sheets": decode_contact_sheets(manifest, per_class),
        "per_class": per_class,
        "changed": changed,
        "limit": MAX_LISTED,
    }
    write_page(render_page("manifest.html.j2", context), path, "--html")


def decode_contact_sheets(manifest: Manifest, per_class: int) -> list[tuple[str, list[Thumbnail]]]:
    """Decodes thumbnails of up to ``per_class`` usable videos of each class, in other processes that may crash or hang."""
    columns = open_video_columns(manifest)
    usable = np.flatnonzero(np.asarray(manifest.table["status"].to_numpy()) == "ok")
    label = columns["label"][usable]
    ids, splits = manifest.table["id"], manifest.table["split"]
    sheets: list[tuple[str, list[int]]] = []
    for index, name in [*enumerate(manifest.classes), (-1, "unknown"), (OTHER_CLASS, "none of the classes")]:
        rows = usable[label == index]
        order = order_by_hash([str(text) for text in ids.take(rows).to_pylist()], 0, "contact sheet")
        sheets.append((name, [int(rows[i]) for i in order[:per_class]]))
    wanted = [row for _, rows in sheets for row in rows]
    results: dict[int, str | ProcessFailure] = {}
    videos = [describe_video(manifest, columns, row) for row in wanted]
    work = map_in_processes(decode_middle_frame, videos, timeout_seconds=60.0)
    for index, result in show_progress(work, len(wanted), "thumbnails"):
        results[wanted[index]] = result
    middles = {row: (video.start + video.end) / 2 for row, video in zip(wanted, videos, strict=True)}

    def build_thumbnail(row: int) -> Thumbnail:
        result = results[row]
        problem = result.reason if isinstance(result, ProcessFailure) else "" if result.startswith("data:") else result
        image = "" if problem or isinstance(result, ProcessFailure) else result
        return Thumbnail(str(ids[row].as_py()), str(splits[row].as_py()), middles[row], image, problem)

    return [(name, [build_thumbnail(row) for row in rows]) for name, rows in sheets if rows]


def decode_middle_frame(video: Video) -> str:
    """Decodes the frame in the middle of a video as a data URI; or returns the reason why it cannot be decoded."""
    try:
        (clip,) = decode_clips(video, 0.5, 0.5, (ClipSection(frames=1, fps=25.0, size=SIDE),), SIDE)
    except DecodeError as error:
        return str(error) or "it does not decode"
    return encode_image(clip[0])
