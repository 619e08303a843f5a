"""The source ``ssv2``: Something-Something v2 (Goyal et al., 2017), ``<id>.webm`` files and the official JSON lists.

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
from pipeline.prepare.sources.file_search import find_files, find_lists_folder, match_names, read_text, resolve_root
from pipeline.prepare.sources.listing import (
    Listing,
    describe_missing_files,
    raise_for_mistakes,
    require_agreement,
    require_videos,
    validate_listing,
)

LIST_FOLDERS = ("labels", "annotations", ".")
LISTS: tuple[tuple[Split, str], ...] = (("train", "train.json"), ("val", "validation.json"))


def list_ssv2(folder: str | Path, lists: str | None = None) -> Listing:
    """Lists the train and the validation videos. Validation serves as test, as in the field: the test list has no labels.

    Raises UserError for malformed entries, templates that labels.json lacks, and lists that disagree.
    """
    root = resolve_root(folder)
    lists_folder = find_lists_folder(lists, root, LIST_FOLDERS, "*labels.json")
    classes = _read_classes(lists_folder)
    rows: list[tuple[str, str, Split, str]] = []
    mistakes: list[str] = []
    for split, ending in LISTS:
        file, entries = _read_json(lists_folder, ending)
        if not isinstance(entries, list):
            raise UserError(f"{file} must be a JSON list of videos")
        for number, entry in enumerate(entries, start=1):
            try:
                video_id, label = str(entry["id"]), entry["template"].replace("[", "").replace("]", "")
            except (TypeError, KeyError, AttributeError):
                mistakes.append(f"{file}: entry {number}: expected id and template, found {json.dumps(entry)[:100]}")
                continue
            mistakes += [] if label in classes else [f"{file}: entry {number}: template {label!r} is not in labels.json"]
            rows.append((video_id, label, split, f"{os.path.basename(file)}: entry {number}"))
    raise_for_mistakes(mistakes, lists_folder)
    require_videos(rows, lists_folder)
    facts = [(video_id, (label, split), line) for video_id, label, split, line in rows]
    require_agreement(facts, f"the lists in {lists_folder}")
    ids, labels, splits, listed_at = zip(*rows, strict=True)
    names = [f"{video_id}.webm" for video_id in ids]
    files_found = find_files(root, names)
    return validate_listing(Listing(
        root=root,
        source="ssv2",
        uris=tuple(uri or name for uri, name in zip(files_found, names, strict=True)),
        labels=labels,
        groups=(None,) * len(ids),
        splits=splits,
        notes=describe_missing_files(root, splits, [uri is not None for uri in files_found], lists_folder),
        ids=ids,
        class_list=classes,
        listed_at=listed_at,
    ))  # fmt: skip


def _read_classes(lists_folder: str) -> tuple[str, ...]:
    file, stored = _read_json(lists_folder, "labels.json")
    try:
        numbers = {str(name): int(index) for name, index in stored.items()}
    except (AttributeError, ValueError, TypeError):
        raise UserError(f"{file} must map every class name to its number") from None
    classes = sorted(numbers, key=numbers.__getitem__)
    if [numbers[name] for name in classes] != list(range(len(classes))):
        raise UserError(f"{file}: the numbers must run from 0 to {len(classes) - 1}")
    return tuple(classes)


def _read_json(lists_folder: str, ending: str) -> tuple[str, Any]:
    """The path and content of a list file, whose name begins with ``something-something-v2-`` in the first release."""
    long_names = match_names(lists_folder, f"something-something-v2-{ending}")
    file = f"{lists_folder}/{long_names[0] if long_names else ending}"
    try:
        return file, json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"list {file} cannot be read as JSON: {error}") from None
