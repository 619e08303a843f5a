"""The source ``frames``: videos that were unpacked into folders of numbered images, as TCL and older data sets have them.

    DIR/<class>/<video>/img_00001.jpg ..., or DIR/<split>/<class>/<video>/...

A video's uri is FFmpeg's pattern of its images, ``run/v1/img_%05d.jpg``, which is one input to every FFmpeg decoder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import UserError, list_first
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import list_files_below, resolve_root
from pipeline.prepare.sources.folder import FolderLayout, find_class_folders
from pipeline.prepare.sources.listing import Listing, validate_listing

IMAGE = re.compile(r"(.*?)(\d+)(\.(?:jpe?g|png|bmp|webp))", re.IGNORECASE)


def list_frames(
    folder: str | Path, frame_rate: float, pattern: str | None = None, layout: FolderLayout | None = None
) -> Listing:
    """Lists the frame folders below class folders.

    ``pattern``, such as ``img_%05d.jpg``, says which images are meant; it need not be given where a folder has one series of
    images. Raises UserError for class folders without images and for folders with several series.
    """
    root = resolve_root(folder)
    rows: list[tuple[str, str | None, Split | None]] = []
    empty: list[str] = []
    ambiguous: list[str] = []
    folders, notes = find_class_folders(root, "<video>/<numbered images>", _is_image_name, layout or FolderLayout())
    for class_folder in folders:
        path = class_folder.path
        videos: dict[str, list[str]] = {}
        for uri in list_files_below(root, path):
            videos.setdefault(os.path.dirname(uri), []).append(os.path.basename(uri))
        series = {video: find_image_patterns(names, pattern) for video, names in videos.items() if video != path}
        ambiguous += [f"{video}: {' and '.join(patterns)}" for video, patterns in series.items() if len(patterns) > 1]
        rows += [
            (f"{video}/{patterns[0]}", class_folder.class_name, class_folder.split)
            for video, patterns in series.items()
            if patterns
        ]
        empty += [] if any(series.values()) else [f"{root}/{path}"]
    if ambiguous:
        raise UserError("frame folders with several series of images; choose one with --frame-pattern:", list_first(ambiguous))
    if empty:
        remedy = "remove them, or leave them out with --skip FOLDER"
        raise UserError(f"class folders without a folder of numbered images; {remedy}:", list_first(empty))
    uris, labels, splits = zip(*rows, strict=True)
    ids = tuple(os.path.dirname(uri) for uri in uris)
    known_splits = None if None in splits else splits
    groups = (None,) * len(uris)
    return validate_listing(Listing(root, "frames", uris, labels, groups, known_splits, notes, ids=ids, frame_rate=frame_rate))


def _is_image_name(name: str) -> bool:
    return IMAGE.fullmatch(name) is not None


def find_image_patterns(names: Iterable[str], pattern: str | None = None) -> list[str]:
    """Finds FFmpeg's patterns of the series of numbered images among names, the longest series first.

    If ``pattern`` is given, it is the only one that is returned, if there are such images.
    """
    series: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := IMAGE.fullmatch(name):
            series.setdefault((match[1].replace("%", "%%"), match[3]), []).append(match[2])
    lengths = {f"{before}{_number_format(numbers)}{after}": len(numbers) for (before, after), numbers in series.items()}
    if pattern is not None:
        unpadded = re.sub(r"%0\d+d", "%d", pattern)
        return [pattern] if any(re.sub(r"%0\d+d", "%d", name) == unpadded for name in lengths) else []
    return sorted(lengths, key=lambda name: (-lengths[name], name))


def _number_format(numbers: list[str]) -> str:
    """``%05d`` for 00001 to 12345, and ``%d`` for 1 to 12345."""
    padded = any(len(number) > 1 and number.startswith("0") for number in numbers)
    return f"%0{min(map(len, numbers))}d" if padded else "%d"
