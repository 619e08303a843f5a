"""No video may be learned from and tested on: not by its id, its group, its bytes, or the part of a file that it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Manifest

KEYS = {"id": "video", "group": "group", "hash": "content"}


def check_leaks(manifest: Manifest, labeled: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
    """Raises UserError naming what is shared between what is learned from and test, or labeled and held-out videos.

    Held-out videos may share a group with unlabeled ones, whose labels are never seen, but not their bytes.
    """
    test = manifest.rows("test")
    learned = np.union1d(manifest.training_rows(), labeled)
    leaks: list[str] = []
    for column in KEYS:
        leaks += _shared(manifest.table, column, learned, test, "test")
    for column, rows in (("id", labeled), ("group", labeled), ("hash", np.setdiff1d(learned, held_out))):
        leaks += _shared(manifest.table, column, rows, held_out, "held out")
    leaks += _overlapping(manifest.table, learned, test, "test")
    leaks += _overlapping(manifest.table, np.setdiff1d(learned, held_out), held_out, "held out")
    if leaks:
        remedy = "remove one side, or give its group to one split"
        raise UserError(f"the same videos would be learned from and tested on; {remedy}:", first_few(leaks))


def _shared(table: pa.Table, column: str, learned: NDArray[np.int64], tested: NDArray[np.int64], what: str) -> list[str]:
    if not len(tested) or table[column].null_count == table.num_rows:
        return []
    there = pc.unique(table[column].take(pa.array(tested, pa.int64()))).drop_null()
    mine = table[column].take(pa.array(learned, pa.int64()))
    rows = learned[np.asarray(pc.is_in(mine, value_set=there))]
    if not len(rows):
        return []
    shared = table.select(["id", column]).take(pa.array(rows, pa.int64())).to_pydict()
    tests = table.select(["id", column]).take(pa.array(tested, pa.int64()))
    example: dict[str, str] = dict(zip(tests[column].to_pylist(), tests["id"].to_pylist(), strict=True))
    pairs = zip(shared["id"], shared[column], strict=True)
    return [f"{KEYS[column]} {key[:16]}: {name} is learned from, {example[key]} is {what}" for name, key in pairs]


def _overlapping(table: pa.Table, learned: NDArray[np.int64], tested: NDArray[np.int64], what: str) -> list[str]:
    """Parts of one file, by their seconds, that are on both sides; parts that only touch are not."""
    if not len(tested):
        return []
    there, mine = (table["uri"].take(pa.array(rows, pa.int64())) for rows in (tested, learned))
    both = pc.is_in(mine, value_set=pc.unique(there))
    if not pc.any(both).as_py():
        return []
    parts: dict[str, list[tuple[float, float, str]]] = {}
    for uri, start, end, name in _parts(table, tested[np.asarray(pc.is_in(there, value_set=pc.unique(mine)))]):
        parts.setdefault(uri, []).append((start, end, name))
    return [
        f"file {uri}: {name} is learned from, {other} is {what}, and they overlap"
        for uri, start, end, name in _parts(table, learned[np.asarray(both)])
        for first, last, other in parts[uri]
        if name != other and start < last and first < end
    ]


def _parts(table: pa.Table, rows: NDArray[np.int64]) -> Iterator[tuple[str, float, float, str]]:
    """File, seconds from and to, and id."""
    columns = table.select(["uri", "start", "end", "id"]).take(pa.array(rows, pa.int64())).to_pydict()
    for uri, start, end, name in zip(*columns.values(), strict=True):
        yield uri, start or 0.0, np.inf if end is None else end, name
