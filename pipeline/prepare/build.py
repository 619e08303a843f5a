"""From a listing of videos to the two files with which a run starts: the manifest and the label subset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, list_first
from pipeline.files.parquet import move_table, remove_table
from pipeline.manifest.label_subset import LabelSubset, draw_labels, write_labels
from pipeline.manifest.schema import OTHER_CLASS, SCHEMA, Manifest, Split, resolve_uri, write_manifest
from pipeline.prepare.groups import join_groups
from pipeline.prepare.probe_cache import MANIFEST_FILE, open_probe_cache
from pipeline.prepare.sources import Listing, draw_missing_splits
from pipeline.video.probe import Probe, ProbeFiles, ProbeOptions, probe_files

LABELS_FILE = "labels.parquet"
REQUIRED_SPLITS: tuple[Split, ...] = ("train", "test")
"""Splits that every run needs: one to draw labels from, and one to evaluate on."""


@dataclass(frozen=True)
class BuildOptions:
    """What is drawn at random when a manifest is built, and from which seed."""

    labeled: str
    """The videos of split train that keep their label: ``10%`` or ``4/class``."""
    test_share: float
    """Share (0..1) of every class that becomes split test, where the source has no splits of its own."""
    seed: int


def build_table(listing: Listing, probes: Sequence[Probe]) -> pa.Table:
    """Builds the manifest's table from a listing, whose splits must be known, and the probes of its files."""
    splits = listing.splits
    assert splits is not None
    label_of_class = {name: label for label, name in enumerate(listing.classes)}
    nulls = [None] * len(listing.uris)
    listed: dict[str, Sequence[object]] = {
        "id": listing.ids or listing.uris,
        "uri": listing.uris,
        "split": splits,
        "class": listing.labels,
        "group": listing.groups,
        "start": listing.starts or nulls,
        "end": listing.ends or nulls,
    }

    def find_label(name: str | None, split: Split) -> int:
        if name is None or name in label_of_class:
            return -1 if name is None else label_of_class[name]
        assert split == "unlabeled", f"{name} of split {split} is not a class"
        return OTHER_CLASS

    def column(name: str) -> Sequence[object]:
        if name == "label":
            return list(map(find_label, listing.labels, splits))
        return listed[name] if name in listed else [getattr(probe, name) for probe in probes]

    # one after the other: the lists of all of them at once would be 170 MB of a million rows
    return pa.table([pa.array(column(field.name), field.type) for field in SCHEMA], schema=SCHEMA)


def probe_listing(
    listing: Listing,
    options: ProbeOptions | None = None,
    folder: Path | None = None,
    probe: ProbeFiles = probe_files,
) -> list[Probe]:
    """Probes every file of a listing that is new or has changed since an earlier run probed it for the same ``folder``.

    ``probe`` does the work: in processes on this machine, or on Ray. Raises UserError when no file can be used.
    """
    options = replace(options or ProbeOptions(), frame_rate=listing.frame_rate)
    locations = [resolve_uri(listing.root, uri) for uri in listing.uris]
    with open_probe_cache(folder) as (find_earlier, record):
        probes = probe(locations, options, find_earlier, record)
    if listing.starts or listing.ends:
        nulls = (None,) * len(probes)
        segments = zip(probes, listing.starts or nulls, listing.ends or nulls, strict=True)
        probes = [_require_frames_in_segment(probe, start or 0.0, end) for probe, start, end in segments]
    if not any(probe.status == "ok" for probe in probes):
        reasons = [f"{uri}: {probe.status}, {probe.reason}" for uri, probe in zip(listing.uris, probes, strict=True)]
        raise UserError(f"none of the {len(probes)} files in {listing.root} can be used:", list_first(reasons))
    return probes


def _require_frames_in_segment(probe: Probe, start: float, end: float | None) -> Probe:
    """The file's probe, or ``too_short`` if the segment has fewer than two of its frames, so that no motion can be seen."""
    if probe.status != "ok" or not (probe.duration and probe.fps):
        return probe
    stop = probe.duration if end is None else min(end, probe.duration)
    if (stop - start) * probe.fps > 2 - 1e-6:
        return probe
    reason = f"its part from {start:g} s on has fewer than 2 frames: the file ends at {probe.duration:.3g} s"
    if end is not None and end <= probe.duration:
        reason = f"its part from {start:g} to {end:g} s has fewer than 2 frames"
    # the reason is one of the segment: without a stamp the file is probed again next time
    return replace(probe, status="too_short", reason=reason, stamp=None)


def join_groups_of_copies(groups: Sequence[str | None], probes: Sequence[Probe]) -> tuple[str | None, ...]:
    """Joins the groups of files with the same content, so that a drawn split has all copies of a video on one side."""
    return join_groups(groups, [None if probe.hash is None else probe.hash[:16] for probe in probes], "content")


def split_listing(listing: Listing, probes: Sequence[Probe], test_share: float, seed: int) -> Listing:
    """Returns the listing with splits: its own, or drawn from the usable videos with all copies of a file on one side.

    Raises UserError if there is no usable video to train on, or none to test on.
    """
    usable = [probe.status == "ok" for probe in probes]
    is_drawn = listing.splits is None
    if is_drawn:
        groups = join_groups_of_copies(listing.groups, probes)
        listing = draw_missing_splits(replace(listing, groups=groups), test_share, seed, usable)
    assert listing.splits is not None
    for split in REQUIRED_SPLITS:
        indices = [index for index, name in enumerate(listing.splits) if name == split]
        if any(usable[index] for index in indices):
            continue
        if is_drawn and split == "test":
            what = "no class has two usable videos of different groups, so that no test split can be drawn"
            remedy = "add videos, name the test videos in a list or a folder test/, or draw by video with --group none"
            raise UserError(f"{what}: {remedy}")
        reasons = [f"{listing.uris[index]}: {probes[index].status}, {probes[index].reason}" for index in indices]
        what = f"none of the {len(indices)} videos of split {split} can be used"
        raise UserError(f"{what}; repair or add their files, or list other videos:", list_first(reasons))
    return listing


def find_empty_classes(manifest: Manifest, split: str) -> list[str]:
    """Finds the classes without a usable video in a split, each with the number of unusable videos that are listed."""
    table = manifest.table.select(["class", "split"])
    listed = Counter(table.filter(pc.equal(table["split"], split))["class"].to_pylist())
    usable = np.unique(np.asarray(manifest.table["label"])[manifest.find_usable_rows(split)])
    empty = sorted(set(range(len(manifest.classes))).difference(usable.tolist()))
    return [f"{manifest.classes[label]} ({listed[manifest.classes[label]]} listed)" for label in empty]


def build_manifest_and_labels(
    listing: Listing, probes: Sequence[Probe], folder: Path, options: BuildOptions, parts: bool | None = None
) -> tuple[Manifest, LabelSubset]:
    """Draws splits and labels and writes ``folder/manifest.parquet`` and ``folder/labels.parquet``.

    Both are complete under temporary names before either replaces an older one; should the machine stop between the two
    replacements, ``read_labels`` refuses the pair. Raises UserError, with nothing written, when a class or split has too few.
    """
    listing = split_listing(listing, probes, options.test_share, options.seed)
    table = build_table(listing, probes)
    folder.mkdir(parents=True, exist_ok=True)
    new_files = {name: folder / f".fresh-{name}" for name in (MANIFEST_FILE, LABELS_FILE)}
    try:
        manifest = write_manifest(table, new_files[MANIFEST_FILE], listing.classes, listing.root, listing.source, parts)
        labels = draw_labels(manifest, options.labeled, options.seed)
        write_labels(labels, manifest, new_files[LABELS_FILE])
        for name, path in new_files.items():
            move_table(path, folder / name)
    finally:
        for path in new_files.values():
            remove_table(path)
    return replace(manifest, path=str(folder / MANIFEST_FILE)), labels
