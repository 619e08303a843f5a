"""``ssv2``: Something-Something v2 (Goyal et al., 2017), ``<id>.webm`` files and the official JSON lists.

    labels.json       {"Approaching something with your camera": "0", ...}
    train.json        [{"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": [...]}]
    validation.json   the same; test.json has ids only

A video's class is its template without brackets; its index is the string in labels.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import find_files, find_folder, names_like, open_root, read_text
from pipeline.prepare.sources.listing import Listing, agree, checked, missing_note, refuse, some

FOLDERS = ("labels", "annotations", ".")
PARTS: tuple[tuple[Split, str], ...] = (("train", "train.json"), ("val", "validation.json"))


def list_ssv2(folder: str | Path, lists: str | None = None) -> Listing:
    """Train and validation (used as test, as the field does); the test list has no labels and is left out.

    Raises UserError for entries that do not fit, templates that labels.json lacks, and lists that disagree.
    """
    root = open_root(folder)
    where = find_folder(lists, root, FOLDERS, "*labels.json")
    classes = _classes(where)
    rows: list[tuple[str, str, Split, str]] = []
    mistakes: list[str] = []
    for split, ending in PARTS:
        file, entries = _read(where, ending)
        if not isinstance(entries, list):
            raise UserError(f"{file} must be a JSON list of videos")
        for number, entry in enumerate(entries, start=1):
            try:
                name, label = str(entry["id"]), entry["template"].replace("[", "").replace("]", "")
            except (TypeError, KeyError, AttributeError):
                mistakes.append(f"{file}: entry {number}: expected id and template, found {json.dumps(entry)[:100]}")
                continue
            mistakes += [] if label in classes else [f"{file}: entry {number}: template {label!r} is not in labels.json"]
            rows.append((name, label, split, f"{os.path.basename(file)}: entry {number}"))
    refuse(mistakes, where)
    some(rows, where)
    agree([(name, (label, split), place) for name, label, split, place in rows], f"the lists in {where}")
    ids, labels, splits, places = zip(*rows, strict=True)
    uris = [f"{name}.webm" for name in ids]
    found = find_files(root, uris)
    notes = missing_note(root, splits, [uri is not None for uri in found], where)
    at = tuple(here or uri for here, uri in zip(found, uris, strict=True))
    groups = (None,) * len(ids)
    return checked(Listing(root, "ssv2", at, labels, groups, splits, notes, ids=ids, class_list=classes, places=places))


def _classes(where: str) -> tuple[str, ...]:
    file, stored = _read(where, "labels.json")
    try:
        numbers = {str(name): int(index) for name, index in stored.items()}
    except (AttributeError, ValueError, TypeError):
        raise UserError(f"{file} must map every class name to its number") from None
    classes = sorted(numbers, key=numbers.__getitem__)
    if [numbers[name] for name in classes] != list(range(len(classes))):
        raise UserError(f"{file}: the numbers must run from 0 to {len(classes) - 1}")
    return tuple(classes)


def _read(where: str, ending: str) -> tuple[str, Any]:
    """The file of that name; the first release wrote ``something-something-v2-`` before it."""
    first = names_like(where, f"something-something-v2-{ending}")
    file = f"{where}/{first[0] if first else ending}"
    try:
        return file, json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"list {file} cannot be read as JSON: {error}") from None
