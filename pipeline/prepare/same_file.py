"""Finding videos that are listed more than once: a video is a file, or a part of it, whatever name it is listed under.

``a.mp4``, ``./a.mp4`` and ``b//a.mp4`` are spellings of one path. A hard link, a symbolic link, a path through a linked
folder or, on some disks, other capital letters are other paths to one file: it has the same device and inode.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from pipeline.errors import UserError, list_first
from pipeline.files import storage
from pipeline.manifest.schema import Split, resolve_uri
from pipeline.prepare.sources import Listing
from pipeline.video import image_sequence
from pipeline.video.probe import Probe

SIDES: dict[Split, str] = {"unlabeled": "train"}
"""Splits that are on the same side as another one: both unlabeled and train are trained on."""


def merge_equal_paths(listing: Listing) -> Listing:
    """Returns the listing with every part of every path once, which can be found without opening files.

    Raises UserError as ``merge_same_files`` does.
    """
    return _merge(listing, [resolve_uri(listing.root, uri) for uri in listing.uris])[0]


def merge_same_files(listing: Listing, probes: Sequence[Probe]) -> tuple[Listing, list[Probe]]:
    """Returns the listing with every part of every file once, and its probes. The first name is kept; a note has the others.

    Raises UserError where a file is listed with two classes or groups, and where a file, or parts of it that overlap, are in
    two splits, so that tests would be seen in training.
    """
    files = identify_files([resolve_uri(listing.root, uri) for uri in listing.uris], probes)
    merged, kept = _merge(listing, files)
    return merged, [probes[index] for index in kept]


def identify_files(
    locations: Sequence[str], probes: Sequence[Probe], identify: Callable[[str], Hashable] | None = None
) -> list[Hashable]:
    """Returns a value for each location that is equal for the same file: its device and inode, or else the location itself.

    Only usable files with the same size and time of change as another one are passed to ``identify``, since links to one file
    have both in common. In most data sets there are none; at worst the file system is asked once for each file.
    """
    identify = identify or get_device_and_inode
    alike = Counter((probe.bytes, probe.stamp) for probe in probes if probe.status == "ok")
    return [
        identify(location) if probe.status == "ok" and alike[probe.bytes, probe.stamp] > 1 else location
        for location, probe in zip(locations, probes, strict=True)
    ]


def get_device_and_inode(location: str) -> Hashable:
    """Returns the device and inode of a local file or of the first image of a pattern, and otherwise the location."""
    if storage.is_remote(location):
        return location
    try:
        file = image_sequence.list_images(location)[0] if image_sequence.is_pattern(location) else location
        status = os.stat(storage.to_local_path(file))
    except OSError:  # a cluster's nodes see it, and this machine does not
        return location
    return status.st_dev, status.st_ino


def _merge(listing: Listing, files: Sequence[Hashable]) -> tuple[Listing, list[int]]:
    """The listing with every part of every file once and all parts of a file under one uri, and the indices that are kept."""
    counts = Counter(files)
    if len(counts) == len(files):
        return listing, list(range(len(files)))
    members: dict[Hashable, list[int]] = {}
    for index, file in enumerate(files):
        if counts[file] > 1:
            members.setdefault(file, []).append(index)
    kept_instead: dict[int, int] = {}
    leaks: list[str] = []
    contradictions: list[str] = []
    uris = list(listing.uris)
    for indices in members.values():
        first_of_part: dict[tuple[float, float], int] = {}
        for index in indices:
            uris[index] = uris[indices[0]]
            first = first_of_part.setdefault(_get_part(listing, index), index)
            if first != index:
                kept_instead[index] = first
                leaks += [_describe_pair(listing, first, index)] if _are_on_two_sides(listing, first, index) else []
                contradictions += _find_contradiction(listing, first, index)
        leaks += _find_leaking_overlaps(listing, sorted(first_of_part.items()))
    if leaks:
        what = "a file, or parts of it that overlap, would be learned from and tested on"
        raise UserError(f"{what}; remove one of each pair, or give both to one split:", list_first(leaks))
    if contradictions:
        what = "a file is listed twice as different things; remove or correct one of each pair:"
        raise UserError(what, list_first(contradictions))
    kept = [index for index in range(len(files)) if index not in kept_instead]
    return replace(listing, uris=tuple(uris), notes=(*listing.notes, *_note(listing, kept_instead))).select(kept), kept


def _note(listing: Listing, kept_instead: dict[int, int]) -> list[str]:
    """What the user is told of the videos that were listed again, by the index that is kept instead of each."""
    if not kept_instead:
        return []
    pairs = [f"{_describe(listing, index)} is {_describe(listing, first)}" for index, first in kept_instead.items()]
    many = (
        "1 video is listed again under another name for the same file, and is"
        if len(pairs) == 1
        else (f"{len(pairs)} videos are listed again under another name for the same file, and are")
    )
    return [f"{many} kept once: {'; '.join(list_first(pairs))}"]


def _get_part(listing: Listing, index: int) -> tuple[float, float]:
    """The seconds of the file at which the video begins and ends."""
    start = listing.starts[index] if listing.starts else None
    end = listing.ends[index] if listing.ends else None
    return start or 0.0, math.inf if end is None else end


def _are_on_two_sides(listing: Listing, first: int, second: int) -> bool:
    """Whether two videos are in splits between which nothing may leak, as train and test, or val and test."""
    if listing.splits is None:
        return False
    first_split, second_split = listing.splits[first], listing.splits[second]
    return SIDES.get(first_split, first_split) != SIDES.get(second_split, second_split)


def _find_leaking_overlaps(listing: Listing, parts: Sequence[tuple[tuple[float, float], int]]) -> list[str]:
    """Pairs of parts, which are given in order of their starts, that have time in common and are on two sides."""
    pairs = []
    open_parts: list[tuple[float, int]] = []  # those that end after the present one begins
    for (start, end), index in parts:
        open_parts = [(until, earlier) for until, earlier in open_parts if until > start]
        pairs += [
            _describe_pair(listing, earlier, index) for _, earlier in open_parts if _are_on_two_sides(listing, earlier, index)
        ]
        open_parts.append((end, index))
    return pairs


def _find_contradiction(listing: Listing, first: int, second: int) -> list[str]:
    """How two rows that are one video differ in class, group or split; splits on two sides are reported as leaks instead."""
    (label, group, split), (other_label, other_group, other_split) = rows = [
        (listing.labels[index] or "without a label", listing.groups[index], listing.splits[index] if listing.splits else None)
        for index in (first, second)
    ]
    same_group = group == other_group or None in (group, other_group)
    if label == other_label and same_group and (split == other_split or _are_on_two_sides(listing, first, second)):
        return []
    texts = [", ".join(str(value) for value in row if value is not None) for row in rows]
    return [f"{_describe(listing, first)}: {texts[0]}; {_describe(listing, second)}: {texts[1]}"]


def _describe_pair(listing: Listing, first: int, second: int) -> str:
    assert listing.splits is not None
    splits = listing.splits
    return f"{_describe(listing, first)} in {splits[first]}, {_describe(listing, second)} in {splits[second]}"


def _describe(listing: Listing, index: int) -> str:
    """The video's id, and the line that lists it."""
    name = (listing.ids or listing.uris)[index]
    return f"{name} ({listing.listed_at[index]})" if listing.listed_at else name
