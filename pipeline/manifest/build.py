"""From a listing to the two files that a run starts from: manifest and label subset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.manifest.labels import LabelSubset, draw_labels, write_labels
from pipeline.manifest.probe import Probe, probe_files
from pipeline.manifest.schema import SCHEMA, Manifest, locate, write_manifest
from pipeline.manifest.sources import Listing, with_splits

MANIFEST, LABELS = "manifest.parquet", "labels.parquet"


def build_table(listing: Listing, probes: Sequence[Probe]) -> pa.Table:
    """The manifest's table. Splits must be known."""
    assert listing.splits is not None
    place = {name: label for label, name in enumerate(listing.classes)}
    count = len(listing.uris)
    columns = {
        "id": listing.uris,
        "uri": listing.uris,
        "split": listing.splits,
        "class": listing.labels,
        "label": [place[name] if name is not None else -1 for name in listing.labels],
        "group": listing.groups,
        "start": [None] * count,
        "end": [None] * count,
        **{name: [getattr(probe, name) for probe in probes] for name in Probe.__dataclass_fields__},
    }
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)


def build(
    listing: Listing, folder: Path, labeled: str, test_share: float, seed: int, processes: int | None = None, with_hash: bool = False
) -> tuple[Manifest, LabelSubset]:
    """Probe, split, draw labels, and write ``folder/manifest.parquet`` and ``folder/labels.parquet``.

    Both are complete under temporary names before either replaces an older one. Raises UserError, with nothing
    written, when no video is usable or a class has too few for the label subset.
    """
    probes = probe_files([locate(listing.root, uri) for uri in listing.uris], processes, with_hash=with_hash)
    if not any(probe.status == "ok" for probe in probes):
        reasons = [f"{uri}: {probe.status}, {probe.reason}" for uri, probe in zip(listing.uris, probes, strict=True)]
        raise UserError(f"none of the {len(probes)} files in {listing.root} is a usable video:", reasons[:20])
    table = build_table(with_splits(listing, test_share, seed), probes)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = [folder / f".{name}.{os.getpid()}" for name in (MANIFEST, LABELS)]
    try:
        manifest = write_manifest(table, temporary[0], listing.classes, listing.root, listing.source)
        labels = draw_labels(manifest, labeled, seed)
        write_labels(labels, temporary[1])
        for path, name in zip(temporary, (MANIFEST, LABELS), strict=True):
            os.replace(path, folder / name)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return Manifest(manifest.table, manifest.classes, manifest.root, manifest.source, manifest.fingerprint, str(folder / MANIFEST)), labels
