"""Which rows of a manifest a table of ``jobs.predict`` is about."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.files.parquet import METADATA_KEY
from pipeline.manifest.label_subset import Rows, find_rows
from pipeline.manifest.schema import Manifest


def check_predicted(schema: pa.Schema, what: str, manifest: Manifest) -> None:
    """Raises UserError unless a table was predicted with the manifest's classes, and not of another manifest's videos.

    ``what`` begins the message.
    """
    about = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if tuple(about.get("classes", ())) != manifest.classes:
        raise UserError(f"{what} has other classes than {manifest.path}: predict it with a run of this manifest")
    if about.get("manifest") not in (None, manifest.fingerprint):
        theirs, own = about["manifest"], manifest.fingerprint
        raise UserError(f"{what} is about the videos of another manifest ({theirs}) than {manifest.path} ({own}): predict this")


def find_predicted_rows(names: pa.ChunkedArray, manifest: Manifest) -> tuple[Rows, list[str]]:
    """Finds the manifest's row of each video that ``jobs.predict`` names: by its id, as manifests are predicted.

    Only a name that is not an id is looked up among the manifest's files, as a path or URI, also below the manifest's root.
    Returns the rows, -1 where there is none, and a sentence for each name without a row.
    """
    rows = find_rows(names, manifest)
    unknown = np.flatnonzero(rows < 0)
    if not len(unknown):
        return rows, []
    paths = [str(name) for name in names.take(pa.array(unknown)).to_pylist()]
    files = pa.array([path.removeprefix(manifest.root.rstrip("/") + "/") for path in paths], pa.string())
    unique = pc.unique(files)
    found, counts = np.full(len(unique), -1, np.int64), np.zeros(len(unique), np.int64)
    start = 0
    for chunk in manifest.table["uri"].chunks:
        matches = pc.index_in(chunk, value_set=unique)
        indices = np.asarray(matches.drop_null(), np.int64)
        found[indices] = start + np.flatnonzero(np.asarray(matches.is_valid()))
        np.add.at(counts, indices, 1)
        start += len(chunk)
    indices = np.asarray(pc.index_in(files, value_set=unique), np.int64)
    rows[unknown] = np.where(counts[indices] == 1, found[indices], -1)
    return rows, [
        f"video {path} is not in the manifest"
        if count == 0
        else f"{path} is the file of {count} videos; name them by their ids"
        for path, count in zip(paths, counts[indices].tolist(), strict=True)
        if count != 1
    ]
