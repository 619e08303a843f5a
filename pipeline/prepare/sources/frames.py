"""``frames``: videos that were unpacked into folders of numbered images, as TCL and older data sets ship.

    DIR/<class>/<video>/img_00001.jpg ..., or DIR/<split>/<class>/<video>/...

A video's uri is FFmpeg's pattern of its images, ``run/v1/img_%05d.jpg``, which is one input to every FFmpeg decoder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import files_below, open_root
from pipeline.prepare.sources.folder import Layout, class_folders
from pipeline.prepare.sources.listing import Listing, checked

IMAGE = re.compile(r"(.*?)(\d+)(\.(?:jpe?g|png|bmp|webp))", re.IGNORECASE)


def list_frames(folder: str | Path, frame_rate: float, pattern: str | None = None, layout: Layout | None = None) -> Listing:
    """Frame folders below class folders. ``pattern`` (``img_%05d.jpg``) is found out where all images are numbered alike.

    Raises UserError for class folders without images and for folders with two series of them.
    """
    root = open_root(folder)
    rows: list[tuple[str, str | None, Split | None]] = []
    empty: list[str] = []
    torn: list[str] = []
    folders, notes = class_folders(root, "<video>/<numbered images>", _is_image_name, layout or Layout())
    for one in folders:
        path, name, split = one.path, one.name, one.split
        videos: dict[str, list[str]] = {}
        for uri in files_below(root, path):
            videos.setdefault(os.path.dirname(uri), []).append(os.path.basename(uri))
        series = {video: image_patterns(names, pattern) for video, names in videos.items() if video != path}
        torn += [f"{video}: {' and '.join(found)}" for video, found in series.items() if len(found) > 1]
        rows += [(f"{video}/{found[0]}", name, split) for video, found in series.items() if found]
        empty += [] if any(series.values()) else [f"{root}/{path}"]
    if torn:
        raise UserError("frame folders with several series of images; choose one with --frame-pattern:", first_few(torn))
    if empty:
        remedy = "remove them, or leave them out with --skip FOLDER"
        raise UserError(f"class folders without a folder of numbered images; {remedy}:", first_few(empty))
    uris, labels, splits = zip(*rows, strict=True)
    ids = tuple(os.path.dirname(uri) for uri in uris)
    known = None if None in splits else splits
    return checked(Listing(root, "frames", uris, labels, (None,) * len(uris), known, notes, ids=ids, frame_rate=frame_rate))


def _is_image_name(name: str) -> bool:
    return IMAGE.fullmatch(name) is not None


def image_patterns(names: Iterable[str], pattern: str | None = None) -> list[str]:
    """FFmpeg patterns of the series of images among names, the longest first; only ``pattern`` if it is given."""
    series: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := IMAGE.fullmatch(name):
            series.setdefault((match[1].replace("%", "%%"), match[3]), []).append(match[2])
    found = {f"{before}{_digits(numbers)}{after}": len(numbers) for (before, after), numbers in series.items()}
    if pattern is not None:
        plain = re.sub(r"%0\d+d", "%d", pattern)
        return [pattern] if any(re.sub(r"%0\d+d", "%d", name) == plain for name in found) else []
    return sorted(found, key=lambda name: (-found[name], name))


def _digits(numbers: list[str]) -> str:
    """``%05d`` for 00001 to 12345, ``%d`` for 1 to 12345."""
    padded = any(len(number) > 1 and number.startswith("0") for number in numbers)
    return f"%0{min(map(len, numbers))}d" if padded else "%d"
