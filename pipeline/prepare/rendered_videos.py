"""Synthetic videos as a source of videos: rendered once, and never mixed with those of an earlier command."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.files.parquet import remove_table
from pipeline.prepare.build import LABELS_FILE
from pipeline.prepare.probe_cache import MANIFEST_FILE
from pipeline.prepare.sources import Listing, list_folder
from pipeline.video.synthetic import Difficulty, is_rendered, render_folder


def list_rendered(
    out: Path, videos: int, classes: int, seed: int, difficulty: Difficulty, processes: int | None = None
) -> Listing:
    """Lists the synthetic videos in ``out``/videos, which are rendered first unless they exist.

    They are rendered into a temporary folder; then the old manifest is deleted and the folders are swapped, so that an
    interruption never leaves old and new videos mixed.
    """
    folder, fresh, old = out / "videos", out / ".videos.tmp", out / ".videos.old"
    for rest in (fresh, old):
        shutil.rmtree(rest, ignore_errors=True)
    if is_rendered(folder, videos, classes, seed, difficulty):
        print(f"the {videos} videos are there: nothing is rendered again", file=sys.stderr, flush=True)
        return replace(list_folder(folder), source="synthetic")
    try:
        render_folder(fresh, videos, classes, seed, difficulty, processes)
        for name in (MANIFEST_FILE, LABELS_FILE):
            remove_table(out / name)
        if folder.exists():
            folder.rename(old)  # at once: deleted file by file, an interruption would leave videos without their marker file
        fresh.rename(folder)
    finally:
        for rest in (fresh, old):
            shutil.rmtree(rest, ignore_errors=True)
    return replace(list_folder(folder), source="synthetic")
