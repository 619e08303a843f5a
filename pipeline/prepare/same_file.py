"""A video is the file that was found, or a part of it, under whatever name it is listed.

``a.mp4``, ``./a.mp4`` and ``b//a.mp4`` are spellings of one path. A hard link, a symbolic link, a path through a linked
folder or, on some disks, other capital letters are other paths to one file: it has the same device and inode.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from pipeline.errors import UserError, first_few
from pipeline.files import storage
from pipeline.manifest.schema import Split, locate
from pipeline.prepare.sources import Listing
from pipeline.video import image_sequence
from pipeline.video.probe import Probe

LEARNED: dict[Split, str] = {"unlabeled": "train"}
"""Splits whose videos are on one side: both are learned from."""


def merge_spellings(listing: Listing) -> Listing:
    """The listing with every part of every path once: what can be told before files are opened. Raises as ``merge_files``."""
    return _merge(listing, [locate(listing.root, uri) for uri in listing.uris])[0]


def merge_files(listing: Listing, probes: Sequence[Probe]) -> tuple[Listing, list[Probe]]:
    """The listing with every part of every file once, and its probes: the first is kept, and a note names the others.

    Raises UserError where a file is said to be of two classes or groups, or is in two splits, and where parts of it that
    overlap are: the test would be seen in training.
    """
    files = find_same([locate(listing.root, uri) for uri in listing.uris], probes)
    merged, kept = _merge(listing, files)
    return merged, [probes[place] for place in kept]


def find_same(
    locations: Sequence[str], probes: Sequence[Probe], number: Callable[[str], Hashable] | None = None
) -> list[Hashable]:
    """What is equal where two locations are one file: its device and inode on disk, else the location itself.

    Only usable files that have the size and the time of change of another one are asked for their ``number``, for links to a
    file have both of them: of most data sets that is none, and at worst a question to the file system for each file.
    """
    number = number or device_and_inode
    alike = Counter((probe.bytes, probe.stamp) for probe in probes if probe.status == "ok")
    return [
        number(location) if probe.status == "ok" and alike[probe.bytes, probe.stamp] > 1 else location
        for location, probe in zip(locations, probes, strict=True)
    ]


def device_and_inode(location: str) -> Hashable:
    """Of a file on disk, or of the first image of a pattern; of anything else the location."""
    if storage.is_remote(location):
        return location
    try:
        path = storage.local_path(image_sequence.list_images(location)[0] if image_sequence.is_pattern(location) else location)
        status = os.stat(path)
    except OSError:  # a cluster's nodes see it, and this machine does not
        return location
    return status.st_dev, status.st_ino


def _merge(listing: Listing, files: Sequence[Hashable]) -> tuple[Listing, list[int]]:
    """The listing with every part of every file once, all parts of a file under one uri, and the places that are kept."""
    counts = Counter(files)
    if len(counts) == len(files):
        return listing, list(range(len(files)))
    members: dict[Hashable, list[int]] = {}
    for place, file in enumerate(files):
        if counts[file] > 1:
            members.setdefault(file, []).append(place)
    kept_instead: dict[int, int] = {}
    leaks: list[str] = []
    disagree: list[str] = []
    uris = list(listing.uris)
    for places in members.values():
        first: dict[tuple[float, float], int] = {}
        for place in places:
            uris[place] = uris[places[0]]
            kept = first.setdefault(_part(listing, place), place)
            if kept != place:
                kept_instead[place] = kept
                leaks += [_pair(listing, kept, place)] if _apart(listing, kept, place) else []
                disagree += _contradiction(listing, kept, place)
        leaks += _overlaps(listing, sorted(first.items()))
    if leaks:
        what = "a file, or parts of it that overlap, would be learned from and tested on"
        raise UserError(f"{what}; remove one of each pair, or give both to one split:", first_few(leaks))
    if disagree:
        raise UserError("a file is listed twice as different things; remove or correct one of each pair:", first_few(disagree))
    places = [place for place in range(len(files)) if place not in kept_instead]
    same = [f"{_name(listing, place)} is {_name(listing, kept)}" for place, kept in kept_instead.items()]
    many = "1 video is listed again under another name for the same file, and is" if len(same) == 1 else (
        f"{len(same)} videos are listed again under another name for the same file, and are"
    )
    notes = (f"{many} kept once: {'; '.join(first_few(same))}",) if same else ()
    return replace(listing, uris=tuple(uris), notes=(*listing.notes, *notes)).only(places), places


def _part(listing: Listing, place: int) -> tuple[float, float]:
    """Seconds of the file that are the video."""
    start = listing.starts[place] if listing.starts else None
    end = listing.ends[place] if listing.ends else None
    return start or 0.0, math.inf if end is None else end


def _apart(listing: Listing, one: int, other: int) -> bool:
    """Whether one of them is learned from and the other is not, or one chosen by and the other tested on."""
    if listing.splits is None:
        return False
    sides = [LEARNED.get(listing.splits[place], listing.splits[place]) for place in (one, other)]
    return sides[0] != sides[1]


def _overlaps(listing: Listing, parts: Sequence[tuple[tuple[float, float], int]]) -> list[str]:
    """Pairs of parts, in order of their starts, that share time and are in different splits."""
    found = []
    open_parts: list[tuple[float, int]] = []  # that end after the present one begins
    for (start, end), place in parts:
        open_parts = [(until, other) for until, other in open_parts if until > start]
        found += [_pair(listing, other, place) for _, other in open_parts if _apart(listing, other, place)]
        open_parts.append((end, place))
    return found


def _contradiction(listing: Listing, one: int, other: int) -> list[str]:
    """What differs of two places that are one video, but for splits of different sides, which are told as leaks."""
    said = [
        (listing.labels[place] or "without a label", listing.groups[place], listing.splits[place] if listing.splits else None)
        for place in (one, other)
    ]
    same_group = said[0][1] == said[1][1] or None in (said[0][1], said[1][1])
    if said[0][0] == said[1][0] and same_group and (said[0][2] == said[1][2] or _apart(listing, one, other)):
        return []
    words = [", ".join(str(word) for word in (label, group, split) if word is not None) for label, group, split in said]
    return [f"{_name(listing, one)}: {words[0]}; {_name(listing, other)}: {words[1]}"]


def _pair(listing: Listing, one: int, other: int) -> str:
    assert listing.splits is not None
    return f"{_name(listing, one)} in {listing.splits[one]}, {_name(listing, other)} in {listing.splits[other]}"


def _name(listing: Listing, place: int) -> str:
    """The id, and the line that lists it."""
    name = (listing.ids or listing.uris)[place]
    return f"{name} ({listing.places[place]})" if listing.places else name
