"""Which train videos keep their label: drawn once, named, stored, and tied to one manifest."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError, first_few
from pipeline.files.parquet import VERSION, read_table, write_table
from pipeline.manifest.leaks import check_leaks
from pipeline.manifest.schema import Manifest
from pipeline.manifest.seeded_order import parse_share, round_half_up, seeded_order
from pipeline.manifest.splits import draw_part

Rows = NDArray[np.int64]


def _none() -> Rows:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class LabelSubset:
    """The labeled videos; all other train videos are unlabeled."""

    ids: tuple[str, ...]
    """Ascending, as ``rows``."""
    rows: Rows
    """Rows of the manifest whose labels are learned from, ascending."""
    spec: str
    """How they were chosen: ``10%``, ``4/class``, ``10% balanced``, ``svformer train.csv``."""
    seed: int
    fingerprint: str
    """16 hexadecimal digits over the chosen ids, their classes and what is held out, nothing else."""
    manifest_fingerprint: str
    held_out: Rows = field(default_factory=_none)
    """Rows of labeled training videos that are validated on and never learned from, ascending."""


def labels_per_class(spec: str, available: int, option: str = "--labeled") -> int:
    """How many of a class's videos are labeled: a share is rounded half up and at least 1; ``n/class`` may exceed them."""
    if match := re.fullmatch(r"(\d+)\s*/\s*class", spec.strip()):
        if int(match[1]) < 1:
            raise UserError(f"{option} {spec!r}: at least 1/class is needed")
        return int(match[1])
    if "/" in spec:
        raise UserError(f"{option} {spec!r} is not understood; write 10% or 4/class")
    return max(1, round_half_up(parse_share(spec, option) * available))


@dataclass(frozen=True)
class DrawOptions:
    """How labels are drawn beyond their number."""

    balanced: bool = False
    """A share is of all train videos and the same number from every class, instead of the same share of every class."""
    hold_out: float = 0.0
    """0..1 of the labeled videos of each class that become the validation set."""
    nested: bool = True
    """Smaller subsets of one seed lie inside larger ones; else every spec is drawn independently."""
    option: str = "--labeled"
    """Command-line option that gave the spec, for messages."""


def draw_labels(manifest: Manifest, spec: str, seed: int, options: DrawOptions | None = None) -> LabelSubset:
    """Choose labeled videos among usable train videos of known class, per class, by hashed order.

    Raises UserError naming every class with too few videos, and for leaks between what is learned from and tested on.
    """
    options = options or DrawOptions()
    train = manifest.rows("train")
    label = np.asarray(manifest.table["label"].to_numpy())[train]
    order = np.argsort(label, kind="stable")
    edges = np.searchsorted(label[order], np.arange(len(manifest.classes) + 1))
    equal = labels_per_class(spec, edges[-1] - edges[0], options.option) / max(len(manifest.classes), 1)
    purpose = "labels" if options.nested else f"labels {spec}"
    chosen: list[int] = []
    short: list[str] = []
    for place, name in enumerate(manifest.classes):
        rows = train[order[edges[place] : edges[place + 1]]]
        evenly = options.balanced and "%" in spec
        wanted = max(1, round_half_up(equal)) if evenly else labels_per_class(spec, len(rows), options.option)
        if len(rows) < wanted:
            short.append(f"class {name} has {len(rows)} usable train videos, {wanted} are needed" + _elsewhere(manifest, place))
        chosen += [int(rows[i]) for i in seeded_order(_texts(manifest, "id", rows), seed, purpose)[:wanted]]
    if short:
        what = f"{options.option} {spec} cannot be drawn; add videos, ask for fewer labels, or drop the class:"
        raise UserError(what, first_few(short))
    words = [spec, *(["balanced"] if options.balanced else []), *([] if options.nested else ["drawn alone"])]
    return make_subset(manifest, np.sort(np.asarray(chosen, np.int64)), ", ".join(words), seed, options.hold_out)


def _elsewhere(manifest: Manifest, label: int) -> str:
    """What to do about videos of the class that are there, but in split unlabeled, or in split test alone."""
    labels = np.asarray(manifest.table["label"].to_numpy())
    counts = {split: int((labels[manifest.rows(split)] == label).sum()) for split in ("train", "unlabeled", "test")}
    remedy = "whose labels are never drawn: list them as train, or leave their label empty where the class is unknown"
    text = f"; {counts['unlabeled']} more are of split unlabeled, {remedy}" if counts["unlabeled"] else ""
    remedy = "correct their labels if they are another class's, or list some of them as train"
    return text + (f"; {counts['test']} are of split test: {remedy}" if counts["test"] and not counts["train"] else "")


def make_subset(manifest: Manifest, rows: Rows, spec: str, seed: int, hold_out: float = 0.0) -> LabelSubset:
    """A subset of given rows, of which ``hold_out`` of every class is kept for validation, by whole groups.

    Raises UserError naming every class of which nothing can be held out, and for leaks.
    """
    held = hold_out_rows(manifest, rows, hold_out, seed) if hold_out else _none()
    rest = np.setdiff1d(rows, held)
    check_leaks(manifest, rest, held)
    return _subset(manifest, rest, held, spec + (f", {100 * hold_out:g}% held out" if hold_out else ""), seed)


def hold_out_rows(manifest: Manifest, rows: Rows, share: float, seed: int) -> Rows:
    """A share of every class among labeled rows, at least 1 and not all. Raises UserError where a class has one group only."""
    classes = _texts(manifest, "class", rows)
    groups = manifest.table["group"].take(pa.array(rows, pa.int64())).to_pylist()
    held = draw_part(_texts(manifest, "id", rows), classes, groups, share, seed, "hold out")
    lost = sorted(set(classes) - {classes[place] for place in held})
    if lost:
        what = "--hold-out needs two labeled videos of different groups in every class; label more, or leave it away:"
        raise UserError(what, first_few([f"class {name}" for name in lost]))
    return rows[np.asarray(held, np.int64)]


def _texts(manifest: Manifest, column: str, rows: Rows) -> list[str]:
    """Of ascending rows, chunk by chunk: the column's own ``take`` joins all of its chunks first, 150 MB of 10 M rows."""
    assert (np.diff(rows) >= 0).all()
    texts: list[object] = []
    start = 0
    for chunk in manifest.table[column].chunks:
        first, last = np.searchsorted(rows, [start, start + len(chunk)])
        texts += chunk.take(pa.array(rows[first:last] - start)).to_pylist() if first < last else []
        start += len(chunk)
    return [str(text) for text in texts]


def _subset(manifest: Manifest, rows: Rows, held: Rows, spec: str, seed: int) -> LabelSubset:
    ids = tuple(_texts(manifest, "id", rows))
    content = [VERSION, ids, _texts(manifest, "class", rows), _texts(manifest, "id", held)]
    print_ = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return LabelSubset(ids, rows, spec, seed, print_, manifest.fingerprint, held)


def write_labels(subset: LabelSubset, manifest: Manifest, path: str | Path) -> None:
    """Write the subset as Parquet (id, class, held_out), replaced as a whole or not at all."""
    facts = {
        "version": VERSION,
        "spec": subset.spec,
        "seed": subset.seed,
        "fingerprint": subset.fingerprint,
        "manifest_fingerprint": subset.manifest_fingerprint,
    }
    rows = np.sort(np.concatenate([subset.rows, subset.held_out]))
    table = manifest.table.select(["id", "class"]).take(pa.array(rows, pa.int64()))
    write_table(table.append_column("held_out", pa.array(np.isin(rows, subset.held_out))), path, facts)


def _rows_of(ids: pa.ChunkedArray, manifest: Manifest) -> Rows:
    """The manifest's row of each id, -1 where it has none. What is hashed is the ids, which are few, and not the manifest."""
    rows, start = np.full(len(ids), -1, np.int64), 0
    for chunk in manifest.table["id"].chunks:
        places = pc.index_in(chunk, value_set=ids)
        there = np.flatnonzero(np.asarray(places.is_valid()))
        rows[np.asarray(places.drop_null(), np.int64)] = start + there
        start += len(chunk)
    return rows


def read_labels(path: str | Path, manifest: Manifest) -> LabelSubset:
    """Read a subset of this manifest. Raises UserError when it was drawn from another one, or was edited."""
    remedy = "draw one with python -m jobs.label"
    table, facts = read_table(path, "label subset", remedy)
    if "manifest_fingerprint" not in facts:
        raise UserError(f"{path} is not a label subset; {remedy}")
    if facts["manifest_fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"label subset {path} was drawn from another manifest ({facts['manifest_fingerprint']}) "
            f"than {manifest.path} ({manifest.fingerprint}); {remedy}"
        )
    changed = UserError(f"label subset {path} was changed after it was written; {remedy}")
    rows, held = _rows_of(table["id"], manifest), np.asarray(table["held_out"])
    if (rows < 0).any():
        raise changed
    subset = _subset(manifest, np.sort(rows[~held]), np.sort(rows[held]), facts["spec"], facts["seed"])
    if subset.fingerprint != facts["fingerprint"]:
        raise changed
    return subset
