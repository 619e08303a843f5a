"""``folder``: ``DIR/<class>/<video files>``, or ``DIR/<split>/<class>/<video files>``."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Split
from pipeline.manifest.sources.files import files_below, open_root, subfolders
from pipeline.manifest.sources.listing import SPLIT_NAMES, Listing, checked


def list_folder(folder: str | Path) -> Listing:
    """Files of class folders, with or without folders of splits above. Raises UserError for a layout that is neither."""
    root = open_root(folder)
    rows: list[tuple[str, str, Split | None]] = []
    empty: list[str] = []
    for path, name, split in class_folders(root, "<video files>"):
        found = files_below(root, path)
        rows += [(uri, name, split) for uri in found]
        empty += [] if found else [f"{root}/{path}"]
    if empty:
        raise UserError("class folders without a file; add videos or remove them:", first_few(empty))
    uris, labels, splits = zip(*rows, strict=True)
    return checked(Listing(root, "folder", uris, labels, (None,) * len(uris), None if None in splits else splits))


def class_folders(root: str, content: str) -> list[tuple[str, str, Split | None]]:
    """(path below the root, class, split) of every class folder; ``content`` is what it should hold, for messages."""
    tops = subfolders(root)
    if not tops:
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/{content}")
    has_splits = all(top.lower() in SPLIT_NAMES for top in tops) and "train" in [SPLIT_NAMES[top.lower()] for top in tops]
    if not has_splits:
        return [(name, name, None) for name in tops]
    found: list[tuple[str, str, Split | None]] = []
    for top in tops:
        names = subfolders(f"{root}/{top}")
        if not names:
            raise UserError(f"{root}/{top} holds no class folders; expected {root}/{top}/<class>/{content}")
        found += [(f"{top}/{name}", name, SPLIT_NAMES[top.lower()]) for name in names]
    return found
