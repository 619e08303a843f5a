"""From a listing to the two files that a run starts from: manifest and label subset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, first_few
from pipeline.files.parquet import move_table, remove_table
from pipeline.manifest.label_subset import LabelSubset, draw_labels, write_labels
from pipeline.manifest.schema import SCHEMA, Manifest, Split, locate, write_manifest
from pipeline.prepare.groups import join_groups
from pipeline.prepare.probe_cache import MANIFEST, remembered
from pipeline.prepare.sources import Listing, with_splits
from pipeline.video.probe import Probe, ProbeFiles, ProbeOptions, probe_files

LABELS = "labels.parquet"
NEEDED: tuple[Split, ...] = ("train", "test")
"""Splits without which a run cannot be: something to draw labels from, and something to evaluate on."""


@dataclass(frozen=True)
class Draw:
    """What is drawn by chance, from which seed."""

    labeled: str
    """``10%`` or ``4/class`` of the train videos."""
    test_share: float
    """0..1 of every class, where the source has no split of its own."""
    seed: int


def build_table(listing: Listing, probes: Sequence[Probe]) -> pa.Table:
    """The manifest's table. Splits must be known."""
    assert listing.splits is not None
    place = {name: label for label, name in enumerate(listing.classes)}
    nothing = [None] * len(listing.uris)
    listed: dict[str, Sequence[object]] = {
        "id": listing.ids or listing.uris,
        "uri": listing.uris,
        "split": listing.splits,
        "class": listing.labels,
        "group": listing.groups,
        "start": listing.starts or nothing,
        "end": listing.ends or nothing,
    }

    def column(name: str) -> Sequence[object]:
        if name == "label":
            return [place[label] if label is not None else -1 for label in listing.labels]
        return listed[name] if name in listed else [getattr(probe, name) for probe in probes]

    # one after the other: the lists of all of them at once would be 170 MB of a million rows
    return pa.table([pa.array(column(field.name), field.type) for field in SCHEMA], schema=SCHEMA)


def probe_listing(
    listing: Listing,
    options: ProbeOptions | None = None,
    folder: Path | None = None,
    probe: ProbeFiles = probe_files,
) -> list[Probe]:
    """Probe every file of a listing that is new or changed since the last probe into this folder.

    ``probe`` does it: processes here, or Ray. Raises UserError when no file is usable.
    """
    options = replace(options or ProbeOptions(), frame_rate=listing.frame_rate)
    paths = [locate(listing.root, uri) for uri in listing.uris]
    with remembered(folder) as (known, note):
        probes = probe(paths, options, known, note)
    if listing.starts or listing.ends:
        nothing = (None,) * len(probes)
        parts = zip(probes, listing.starts or nothing, listing.ends or nothing, strict=True)
        probes = [_of_part(found, start or 0.0, end) for found, start, end in parts]
    if not any(found.status == "ok" for found in probes):
        reasons = [f"{uri}: {found.status}, {found.reason}" for uri, found in zip(listing.uris, probes, strict=True)]
        raise UserError(f"none of the {len(probes)} files in {listing.root} can be used:", first_few(reasons))
    return probes


def _of_part(found: Probe, start: float, end: float | None) -> Probe:
    """A file's probe, or that fewer than two of its frames lie in the part: nothing could be seen to move."""
    if found.status != "ok" or not (found.duration and found.fps):
        return found
    stop = found.duration if end is None else min(end, found.duration)
    if (stop - start) * found.fps > 2 - 1e-6:
        return found
    reason = f"its part from {start:g} s on has fewer than 2 frames: the file ends at {found.duration:.3g} s"
    if end is not None and end <= found.duration:
        reason = f"its part from {start:g} to {end:g} s has fewer than 2 frames"
    return replace(found, status="too_short", reason=reason, stamp=None)  # of the part: the file is probed again next time


def joined_groups(groups: Sequence[str | None], probes: Sequence[Probe]) -> tuple[str | None, ...]:
    """Groups joined where files have the same content, so that a drawn split puts copies of a video on one side."""
    return join_groups(groups, [None if probe.hash is None else probe.hash[:16] for probe in probes], "content")


def split_listing(listing: Listing, probes: Sequence[Probe], test_share: float, seed: int) -> Listing:
    """The listing with splits: its own, or drawn over usable videos, with copies of a file on one side.

    Raises UserError where nothing can be learned from, or nothing tested on.
    """
    usable = [probe.status == "ok" for probe in probes]
    drawn = listing.splits is None
    if drawn:
        listing = with_splits(replace(listing, groups=joined_groups(listing.groups, probes)), test_share, seed, usable)
    assert listing.splits is not None
    for split in NEEDED:
        there = [place for place, name in enumerate(listing.splits) if name == split]
        if any(usable[place] for place in there):
            continue
        if drawn and split == "test":
            what = "no class has two usable videos of different groups, so that no test split can be drawn"
            remedy = "add videos, name the test videos in a list or a folder test/, or draw by video with --group none"
            raise UserError(f"{what}: {remedy}")
        reasons = [f"{listing.uris[place]}: {probes[place].status}, {probes[place].reason}" for place in there]
        what = f"none of the {len(there)} videos of split {split} can be used"
        raise UserError(f"{what}; mend or add their files, or name other videos:", first_few(reasons))
    return listing


def classes_without(manifest: Manifest, split: str) -> list[str]:
    """Classes of which no video of a split can be used, each with how many it names."""
    table = manifest.table.select(["class", "split"])
    listed = Counter(table.filter(pc.equal(table["split"], split))["class"].to_pylist())
    usable = np.unique(np.asarray(manifest.table["label"])[manifest.rows(split)])
    empty = sorted(set(range(len(manifest.classes))).difference(usable.tolist()))
    return [f"{manifest.classes[label]} ({listed[manifest.classes[label]]} listed)" for label in empty]


def build(
    listing: Listing, probes: Sequence[Probe], folder: Path, draw: Draw, parts: bool | None = None
) -> tuple[Manifest, LabelSubset]:
    """Split, draw labels, and write ``folder/manifest.parquet`` and ``folder/labels.parquet``.

    Both are complete under temporary names before either replaces an older one; should the machine stop between the two
    replacements, ``read_labels`` refuses the pair. Raises UserError, with nothing written, when a class or split has too few.
    """
    listing = split_listing(listing, probes, draw.test_share, draw.seed)
    table = build_table(listing, probes)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = {name: folder / f".fresh-{name}" for name in (MANIFEST, LABELS)}
    try:
        manifest = write_manifest(table, fresh[MANIFEST], listing.classes, listing.root, listing.source, parts)
        labels = draw_labels(manifest, draw.labeled, draw.seed)
        write_labels(labels, manifest, fresh[LABELS])
        for name, path in fresh.items():
            move_table(path, folder / name)
    finally:
        for path in fresh.values():
            remove_table(path)
    return replace(manifest, path=str(folder / MANIFEST)), labels
