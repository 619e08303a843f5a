"""Checking that no video is both trained and tested on: by its id, its group, its content, and the part of a file it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError, list_first
from pipeline.manifest.schema import Manifest

COMPARED_COLUMNS = {"id": "video", "group": "group", "hash": "content"}
"""Columns whose values must not occur on both sides, and what messages call them."""


def check_leaks(manifest: Manifest, labeled: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
    """Raises UserError that names what training and test videos, or labeled and held-out videos, have in common.

    ``labeled`` and ``held_out`` are rows. Held-out videos may be in one group with unlabeled ones, whose labels are never
    seen, but may not have the same content.
    """
    test = manifest.find_usable_rows("test")
    trained = np.union1d(manifest.find_training_rows(), labeled)
    leaks: list[str] = []
    for column in COMPARED_COLUMNS:
        leaks += _find_shared(manifest.table, column, trained, test, "test")
    for column, rows in (("id", labeled), ("group", labeled), ("hash", np.setdiff1d(trained, held_out))):
        leaks += _find_shared(manifest.table, column, rows, held_out, "held out")
    leaks += _find_overlapping(manifest.table, trained, test, "test")
    leaks += _find_overlapping(manifest.table, np.setdiff1d(trained, held_out), held_out, "held out")
    if leaks:
        remedy = "remove one side, or give its group to one split"
        raise UserError(f"the same videos would be learned from and tested on; {remedy}:", list_first(leaks))


def _find_shared(table: pa.Table, column: str, trained: NDArray[np.int64], tested: NDArray[np.int64], use: str) -> list[str]:
    """Describes the trained rows whose value in a column a tested row has, too; ``use`` says what the latter are."""
    if not len(tested) or table[column].null_count == table.num_rows:
        return []
    tested_values = pc.unique(table[column].take(pa.array(tested, pa.int64()))).drop_null()
    trained_values = table[column].take(pa.array(trained, pa.int64()))
    rows = trained[np.asarray(pc.is_in(trained_values, value_set=tested_values))]
    if not len(rows):
        return []
    shared = table.select(["id", column]).take(pa.array(rows, pa.int64())).to_pydict()
    tests = table.select(["id", column]).take(pa.array(tested, pa.int64()))
    example: dict[str, str] = dict(zip(tests[column].to_pylist(), tests["id"].to_pylist(), strict=True))
    pairs = zip(shared["id"], shared[column], strict=True)
    return [
        f"{COMPARED_COLUMNS[column]} {value[:16]}: {video_id} is learned from, {example[value]} is {use}"
        for video_id, value in pairs
    ]


def _find_overlapping(table: pa.Table, trained: NDArray[np.int64], tested: NDArray[np.int64], use: str) -> list[str]:
    """Describes the parts of one file on both sides that have time in common; parts that only touch are allowed."""
    if not len(tested):
        return []
    tested_uris, trained_uris = (table["uri"].take(pa.array(rows, pa.int64())) for rows in (tested, trained))
    is_tested_too = pc.is_in(trained_uris, value_set=pc.unique(tested_uris))
    if not pc.any(is_tested_too).as_py():
        return []
    tested_parts: dict[str, list[tuple[float, float, str]]] = {}
    is_trained_too = np.asarray(pc.is_in(tested_uris, value_set=pc.unique(trained_uris)))
    for uri, start, end, video_id in _iterate_parts(table, tested[is_trained_too]):
        tested_parts.setdefault(uri, []).append((start, end, video_id))
    return [
        f"file {uri}: {video_id} is learned from, {tested_id} is {use}, and they overlap"
        for uri, start, end, video_id in _iterate_parts(table, trained[np.asarray(is_tested_too)])
        for tested_start, tested_end, tested_id in tested_parts[uri]
        if video_id != tested_id and start < tested_end and tested_start < end
    ]


def _iterate_parts(table: pa.Table, rows: NDArray[np.int64]) -> Iterator[tuple[str, float, float, str]]:
    """Yields the file, the seconds at which the video begins and ends in it, and the id."""
    columns = table.select(["uri", "start", "end", "id"]).take(pa.array(rows, pa.int64())).to_pydict()
    for uri, start, end, video_id in zip(*columns.values(), strict=True):
        yield uri, start or 0.0, np.inf if end is None else end, video_id
