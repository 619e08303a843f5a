"""A manifest as a page: counts, histograms, a few videos of every class, and the files that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.clips.decode import DecodeError, Video, decode_clips
from pipeline.clips.source import video_at, video_columns
from pipeline.config import ClipSection
from pipeline.manifest.schema import Manifest
from pipeline.manifest.seeded_order import order_by_hash
from pipeline.manifest.summary import Summary
from pipeline.processes.isolation import ProcessFailure, map_in_processes
from pipeline.progress import progress
from pipeline.report.html import image_uri, render_page, write_page

SIDE, MAX_LISTED = 112, 1000
"""Pixels of a thumbnail, as square as the decoded window; files and duplicates that a page lists."""


@dataclass(frozen=True)
class Thumbnail:
    """The middle frame of a video."""

    id: str
    split: str
    image: str
    """A data URI; empty where ``problem`` says why."""
    problem: str = ""


def write_contact_sheet(
    manifest: Manifest, summary: Summary, path: Path, per_class: int, changed: Sequence[tuple[str, str]] | None = None
) -> None:
    """Write the page. Which videos are shown is decided by a hash of their ids; ``changed`` is what ``verify`` found."""
    context = {
        "manifest": manifest,
        "summary": summary,
        "sheets": contact_sheets(manifest, per_class),
        "per_class": per_class,
        "changed": changed,
        "limit": MAX_LISTED,
    }
    write_page(render_page("manifest.html.j2", context), path, "--html")


def contact_sheets(manifest: Manifest, per_class: int) -> list[tuple[str, list[Thumbnail]]]:
    """(class, thumbnails of ``per_class`` usable videos), decoded in other processes that may crash or hang."""
    columns = video_columns(manifest)
    usable = np.flatnonzero(np.asarray(manifest.table["status"].to_numpy()) == "ok")
    label = columns["label"][usable]
    ids, splits = manifest.table["id"], manifest.table["split"]
    sheets: list[tuple[str, list[int]]] = []
    for place, name in enumerate((*manifest.classes, "unknown")):
        rows = usable[label == (place if place < len(manifest.classes) else -1)]
        order = order_by_hash([str(text) for text in ids.take(rows).to_pylist()], 0, "contact sheet")
        sheets.append((name, [int(rows[i]) for i in order[:per_class]]))
    wanted = [row for _, rows in sheets for row in rows]
    made: dict[int, str | ProcessFailure] = {}
    work = map_in_processes(middle_frame, [video_at(manifest, columns, row) for row in wanted], timeout_seconds=60.0)
    for index, result in progress(work, len(wanted), "thumbnails"):
        made[wanted[index]] = result
    return [
        (name, [_thumbnail(str(ids[row].as_py()), str(splits[row].as_py()), made[row]) for row in rows])
        for name, rows in sheets
        if rows
    ]


def _thumbnail(name: str, split: str, result: str | ProcessFailure) -> Thumbnail:
    if isinstance(result, ProcessFailure):
        return Thumbnail(name, split, "", result.reason)
    return Thumbnail(name, split, result) if result.startswith("data:") else Thumbnail(name, split, "", result)


def middle_frame(video: Video) -> str:
    """The frame in the middle of a video as a data URI, or why it does not decode."""
    try:
        (clip,) = decode_clips(video, 0.5, 0.5, (ClipSection(frames=1, fps=25.0, size=SIDE),), SIDE)
    except DecodeError as error:
        return str(error) or "it does not decode"
    return image_uri(clip[0])
