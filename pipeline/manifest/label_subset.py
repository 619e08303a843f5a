"""Label subsets: which training videos keep their label. A subset is drawn once, stored, and belongs to one manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError, list_first
from pipeline.files.parquet import VERSION, read_table, write_table
from pipeline.manifest.leaks import check_leaks
from pipeline.manifest.schema import Manifest
from pipeline.manifest.seeded_order import order_by_hash, parse_share, round_half_up
from pipeline.manifest.splits import draw_share

Rows = NDArray[np.int64]


def _no_rows() -> Rows:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class LabelSubset:
    """The labeled videos; all other training videos are unlabeled."""

    ids: tuple[str, ...]
    """Ids of the labeled videos, in the order of ``rows``."""
    rows: Rows
    """Rows of the manifest whose labels are trained on, ascending."""
    spec: str
    """How the videos were chosen: ``10%``, ``4/class``, ``10% balanced``, ``svformer train.csv``."""
    seed: int
    fingerprint: str
    """16 hexadecimal digits that depend on the chosen ids, their classes and the held-out ids, and on nothing else."""
    manifest_fingerprint: str
    """Fingerprint of the manifest whose rows these are."""
    held_out: Rows = field(default_factory=_no_rows)
    """Rows of labeled training videos that are used for validation and never trained on, ascending."""
    given: dict[int, int] = field(default_factory=dict)
    """Labels (indices of classes) by row that people gave, where they differ from the manifest's: it may not know the class."""
    excluded: Rows = field(default_factory=_no_rows)
    """Rows of training videos that are not trained on, because people marked them as unusable, ascending."""
    lineage: tuple[dict[str, Any], ...] = ()
    """Where labels came from: an entry for each file of answers that was added, in order."""

    def read_classes(self, manifest: Manifest) -> dict[int, int]:
        """Returns the label of each labeled and held-out row."""
        rows = np.sort(np.concatenate([self.rows, self.held_out]))
        labels = manifest.table["label"].take(pa.array(rows, pa.int64())).to_pylist()
        return {int(row): self.given.get(int(row), int(label)) for row, label in zip(rows, labels, strict=True)}


def count_labels_per_class(spec: str, available: int, option: str = "--labeled") -> int:
    """Computes how many of the ``available`` videos of a class are labeled by a spec, ``10%`` or ``4/class``.

    A share is rounded half up and at least 1; ``n/class`` may exceed what is available. Raises UserError that names ``option``.
    """
    if match := re.fullmatch(r"(\d+)\s*/\s*class", spec.strip()):
        if int(match[1]) < 1:
            raise UserError(f"{option} {spec!r}: at least 1/class is needed")
        return int(match[1])
    if "/" in spec or (option == "--labeled" and "%" not in spec):
        raise UserError(f"{option} {spec!r} is not understood; write 10% or 4/class")
    return max(1, round_half_up(parse_share(spec, option) * available))


@dataclass(frozen=True)
class DrawOptions:
    """How labels are drawn, apart from their number."""

    balanced: bool = False
    """Whether a share means the same number of videos from every class, instead of the same share of every class."""
    hold_out: float = 0.0
    """Share (0..1) of the labeled videos of each class that become the validation set."""
    nested: bool = True
    """Whether the smaller subsets of a seed are contained in the larger ones; if not, every spec is drawn independently."""
    option: str = "--labeled"
    """The command-line option that gave the spec, for messages."""


def draw_labels(manifest: Manifest, spec: str, seed: int, options: DrawOptions | None = None) -> LabelSubset:
    """Draws the labeled videos of each class among the usable videos of split train, by hashed order.

    Raises UserError that names every class with too few videos, and for leaks between training and test videos.
    """
    options = options or DrawOptions()
    train = manifest.find_usable_rows("train")
    labels = np.asarray(manifest.table["label"].to_numpy())[train]
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(len(manifest.classes) + 1))
    balanced_count = count_labels_per_class(spec, edges[-1] - edges[0], options.option) / max(len(manifest.classes), 1)
    purpose = "labels" if options.nested else f"labels {spec}"
    chosen: list[int] = []
    too_few: list[str] = []
    for label, name in enumerate(manifest.classes):
        rows = train[order[edges[label] : edges[label + 1]]]
        if options.balanced and "%" in spec:
            wanted = max(1, round_half_up(balanced_count))
        else:
            wanted = count_labels_per_class(spec, len(rows), options.option)
        if len(rows) < wanted:
            problem = f"class {name} has {len(rows)} usable train videos, {wanted} are needed"
            too_few.append(problem + _describe_other_splits(manifest, label))
        chosen += [int(rows[i]) for i in order_by_hash(_read_texts(manifest, "id", rows), seed, purpose)[:wanted]]
    if too_few:
        what = f"{options.option} {spec} cannot be drawn; add videos, ask for fewer labels, or drop the class:"
        raise UserError(what, list_first(too_few))
    words = [spec, *(["balanced"] if options.balanced else []), *([] if options.nested else ["drawn alone"])]
    return make_subset(manifest, np.sort(np.asarray(chosen, np.int64)), ", ".join(words), seed, options.hold_out)


def _describe_other_splits(manifest: Manifest, label: int) -> str:
    """What to do about videos of the class that are in split unlabeled, or only in split test."""
    labels = np.asarray(manifest.table["label"].to_numpy())
    counts = {split: int((labels[manifest.find_usable_rows(split)] == label).sum()) for split in ("train", "unlabeled", "test")}
    remedy = "whose labels are never drawn: list them as train, or leave their label empty where the class is unknown"
    text = f"; {counts['unlabeled']} more are of split unlabeled, {remedy}" if counts["unlabeled"] else ""
    remedy = "correct their labels if they are another class's, or list some of them as train"
    return text + (f"; {counts['test']} are of split test: {remedy}" if counts["test"] and not counts["train"] else "")


def make_subset(manifest: Manifest, rows: Rows, spec: str, seed: int, hold_out: float = 0.0) -> LabelSubset:
    """Makes a subset of given rows, of which a share ``hold_out`` of every class is held out for validation, by whole groups.

    Raises UserError that names every class of which nothing can be held out, and for leaks.
    """
    held_out = draw_held_out(manifest, rows, hold_out, seed) if hold_out else _no_rows()
    labeled = np.setdiff1d(rows, held_out)
    check_leaks(manifest, labeled, held_out)
    return build_subset(manifest, labeled, held_out, spec + (f", {100 * hold_out:g}% held out" if hold_out else ""), seed)


def draw_held_out(manifest: Manifest, rows: Rows, share: float, seed: int) -> Rows:
    """Draws the held-out rows among labeled ones: a share of every class, at least 1 and not all.

    Raises UserError if a class has only one group.
    """
    classes = _read_texts(manifest, "class", rows)
    groups = manifest.table["group"].take(pa.array(rows, pa.int64())).to_pylist()
    drawn = draw_share(_read_texts(manifest, "id", rows), classes, groups, share, seed, "hold out")
    missing = sorted(set(classes) - {classes[index] for index in drawn})
    if missing:
        what = "--hold-out needs two labeled videos of different groups in every class; label more, or leave the option out:"
        raise UserError(what, list_first([f"class {name}" for name in missing]))
    return rows[np.asarray(drawn, np.int64)]


def _read_texts(manifest: Manifest, column: str, rows: Rows) -> list[str]:
    """A column's values at ascending rows, chunk by chunk: the column's own ``take`` would first join 150 MB of 10 M rows."""
    assert (np.diff(rows) >= 0).all()
    texts: list[object] = []
    start = 0
    for chunk in manifest.table[column].chunks:
        first, last = np.searchsorted(rows, [start, start + len(chunk)])
        texts += chunk.take(pa.array(rows[first:last] - start)).to_pylist() if first < last else []
        start += len(chunk)
    return [str(text) for text in texts]


def build_subset(
    manifest: Manifest,
    rows: Rows,
    held_out: Rows,
    spec: str,
    seed: int,
    given: Mapping[int, int] | None = None,
    excluded: Rows | None = None,
) -> LabelSubset:
    """Builds a subset of rows (ascending) with its fingerprint; ``given`` and ``excluded`` are as in ``LabelSubset``.

    Raises UserError for leaks between training and test videos.
    """
    if given or excluded is not None:
        check_leaks(manifest, rows, held_out)
    ids = tuple(_read_texts(manifest, "id", rows))
    own = manifest.table["label"]
    given = {row: label for row, label in (given or {}).items() if own[row].as_py() != label}
    names = _read_texts(manifest, "class", rows)
    names = [manifest.classes[given[row]] if row in given else name for row, name in zip(rows.tolist(), names, strict=True)]
    content = [VERSION, ids, names, _read_texts(manifest, "id", held_out)]
    if excluded is not None and len(excluded):
        content.append(_read_texts(manifest, "id", excluded))
    if changed := [[row, given[row]] for row in held_out.tolist() if row in given]:
        content.append(changed)
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    out = _no_rows() if excluded is None else excluded
    return LabelSubset(ids, rows, spec, seed, fingerprint, manifest.fingerprint, held_out, given, out)


def write_labels(subset: LabelSubset, manifest: Manifest, path: str | Path) -> None:
    """Writes the subset as Parquet with the columns id, class and held_out, completely or not at all."""
    metadata = {
        "version": VERSION,
        "spec": subset.spec,
        "seed": subset.seed,
        "fingerprint": subset.fingerprint,
        "manifest_fingerprint": subset.manifest_fingerprint,
    }
    if subset.lineage:
        metadata |= {"lineage": subset.lineage, "excluded": _read_texts(manifest, "id", subset.excluded)}
    rows = np.sort(np.concatenate([subset.rows, subset.held_out]))
    table = manifest.table.select(["id", "class"]).take(pa.array(rows, pa.int64()))
    if subset.given:
        names = [
            manifest.classes[subset.given[row]] if row in subset.given else name
            for row, name in zip(rows.tolist(), table["class"].to_pylist(), strict=True)
        ]
        table = table.set_column(1, "class", pa.array(names, pa.string()))
    write_table(table.append_column("held_out", pa.array(np.isin(rows, subset.held_out))), path, metadata)


def find_rows(ids: pa.ChunkedArray, manifest: Manifest) -> Rows:
    """Finds the manifest's row of each id, -1 where it has none.

    The hash table is of the ids, which are few, and not of the manifest."""
    unique = pc.unique(ids)
    rows, start = np.full(len(unique), -1, np.int64), 0
    for chunk in manifest.table["id"].chunks:
        indices = pc.index_in(chunk, value_set=unique)
        offsets = np.flatnonzero(np.asarray(indices.is_valid()))
        rows[np.asarray(indices.drop_null(), np.int64)] = start + offsets
        start += len(chunk)
    return rows if len(unique) == len(ids) else rows[np.asarray(pc.index_in(ids, value_set=unique), np.int64)]


def read_labels(path: str | Path, manifest: Manifest) -> LabelSubset:
    """Reads a subset of this manifest.

    Raises UserError if the subset belongs to another manifest, or was changed after it was written.
    """
    remedy = "draw one with python -m jobs.label"
    table, metadata = read_table(path, "label subset", remedy)
    if "manifest_fingerprint" not in metadata:
        raise UserError(f"{path} is not a label subset; {remedy}")
    if metadata["manifest_fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"label subset {path} was drawn from another manifest ({metadata['manifest_fingerprint']}) "
            f"than {manifest.path} ({manifest.fingerprint}); {remedy}"
        )
    changed = UserError(f"label subset {path} was changed after it was written; {remedy}")
    rows, held_out = find_rows(table["id"], manifest), np.asarray(table["held_out"])
    excluded = find_rows(pa.chunked_array([metadata.get("excluded", [])], pa.string()), manifest)
    if (rows < 0).any() or (excluded < 0).any():
        raise changed
    given: dict[int, int] = {}
    if metadata.get("lineage"):
        names = {name: label for label, name in enumerate(manifest.classes)}
        given = {int(row): names.get(name, -1) for row, name in zip(rows, table["class"].to_pylist(), strict=True)}
        if -1 in given.values():
            raise changed
    labeled, held_out = np.sort(rows[~held_out]), np.sort(rows[held_out])
    subset = build_subset(manifest, labeled, held_out, metadata["spec"], metadata["seed"], given, np.sort(excluded))
    if subset.fingerprint != metadata["fingerprint"]:
        raise changed
    return replace(subset, lineage=tuple(metadata.get("lineage", ())))
