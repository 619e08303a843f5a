"""Which train videos keep their label: drawn once, named, stored, and tied to one manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.manifest.schema import VERSION, Manifest, read_table, write_table


@dataclass(frozen=True)
class LabelSubset:
    """The labeled videos; all other train videos are unlabeled."""

    ids: tuple[str, ...]
    """Ascending, as ``rows``."""
    rows: NDArray[np.int64]
    """Rows of the manifest, ascending."""
    spec: str
    """As given: ``10%`` or ``4/class``."""
    seed: int
    fingerprint: str
    """16 hexadecimal digits over the chosen ids and their classes, nothing else."""
    manifest_fingerprint: str


def seeded_order(ids: Sequence[str], seed: int, purpose: str) -> list[int]:
    """A shuffle that is the same on every machine: places of ``ids``, by the hash of (purpose, seed, id).

    It does not depend on the order of ``ids``, and dropping some leaves the order of the others.
    """
    keys = [hashlib.sha256(f"{purpose}\0{seed}\0{text}".encode()).digest() for text in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)


def round_half_up(number: float) -> int:
    """2.5 is 3: Python's own ``round`` makes it 2 and 3.5 4."""
    return int(number + 0.5)


def parse_share(spec: str, option: str) -> float:
    """``"25%"`` as 0.25. Raises UserError naming ``option``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", spec.strip())
    if not match or not 0 < float(match[1]) <= 100:
        raise UserError(f"{option} {spec!r} is not understood; write a share above 0% and up to 100%, for example 10%")
    return float(match[1]) / 100


def labels_per_class(spec: str, available: int) -> int:
    """How many of a class's videos are labeled: a share is rounded half up and at least 1; ``n/class`` may exceed them."""
    if match := re.fullmatch(r"(\d+)\s*/\s*class", spec.strip()):
        if int(match[1]) < 1:
            raise UserError(f"--labeled {spec!r}: at least 1/class is needed")
        return int(match[1])
    if "/" in spec:
        raise UserError(f"--labeled {spec!r} is not understood; write 10% or 4/class")
    return max(1, round_half_up(parse_share(spec, "--labeled") * available))


def draw_labels(manifest: Manifest, spec: str, seed: int) -> LabelSubset:
    """Choose labeled videos among usable train videos of known class, per class, by hashed order.

    With one seed a smaller subset lies inside a larger one. Raises UserError naming every class with too few videos.
    """
    label = np.asarray(manifest.table["label"].to_numpy())
    train = manifest.rows("train")
    chosen: list[int] = []
    short: list[str] = []
    for place, name in enumerate(manifest.classes):
        rows = train[label[train] == place]
        wanted = labels_per_class(spec, len(rows))
        if len(rows) < wanted:
            short.append(f"class {name} has {len(rows)} usable train videos, {wanted} are needed")
        ids = [str(text) for text in manifest.table["id"].take(pa.array(rows, pa.int64())).to_pylist()]
        chosen += [int(rows[i]) for i in seeded_order(ids, seed, "labels")[:wanted]]
    if short:
        raise UserError(f"--labeled {spec} cannot be drawn; add videos, lower --labeled or --test, or drop the class:", short)
    return _subset(manifest, np.sort(np.asarray(chosen, np.int64)), spec, seed)


def _subset(manifest: Manifest, rows: NDArray[np.int64], spec: str, seed: int) -> LabelSubset:
    part = manifest.table.select(["id", "class"]).take(pa.array(rows, pa.int64()))
    ids = tuple(str(text) for text in part["id"].to_pylist())
    content = json.dumps([VERSION, ids, part["class"].to_pylist()]).encode()
    return LabelSubset(ids, rows, spec, seed, hashlib.sha256(content).hexdigest()[:16], manifest.fingerprint)


def write_labels(subset: LabelSubset, path: str | Path) -> None:
    """Write the subset as Parquet, replaced as a whole or not at all."""
    facts = {
        "version": VERSION,
        "spec": subset.spec,
        "seed": subset.seed,
        "fingerprint": subset.fingerprint,
        "manifest_fingerprint": subset.manifest_fingerprint,
    }
    write_table(pa.table({"id": pa.array(subset.ids, pa.string())}), path, facts)


def read_labels(path: str | Path, manifest: Manifest) -> LabelSubset:
    """Read a subset of this manifest. Raises UserError when it was drawn from another one."""
    remedy = "draw one with python -m jobs.prepare"
    table, facts = read_table(path, "label subset", remedy)
    if "manifest_fingerprint" not in facts:
        raise UserError(f"{path} is not a label subset; {remedy}")
    if facts["manifest_fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"label subset {path} was drawn from another manifest ({facts['manifest_fingerprint']}) "
            f"than {manifest.path} ({manifest.fingerprint}); {remedy}"
        )
    place = {name: row for row, name in enumerate(manifest.table["id"].to_pylist())}
    rows = np.sort(np.asarray([place[name] for name in table["id"].to_pylist()], np.int64))
    subset = _subset(manifest, rows, facts["spec"], facts["seed"])
    if subset.fingerprint != facts["fingerprint"]:
        raise UserError(f"label subset {path} was changed after it was written; {remedy}")
    return subset
