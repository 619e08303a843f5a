"""Where videos and their classes come from: class folders, or a list in a CSV file. Both become ``Listing``s."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.schema import Split, locate
from pipeline.manifest.splits import check_groups, draw_splits

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
COLUMNS = ("path", "label", "group", "split")
SHOWN = 20
"""How many of many mistakes a message lists."""


@dataclass(frozen=True)
class Listing:
    """Files of a data set before they are opened; the sequences run in parallel."""

    root: str
    source: str
    uris: tuple[str, ...]
    """Relative to the root, with forward slashes; also the ids."""
    labels: tuple[str | None, ...]
    """Class names; None where unknown."""
    groups: tuple[str | None, ...]
    splits: tuple[Split, ...] | None
    """None: to be drawn."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the source was read."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted by name; as numbers where all of them are."""
        names = {name for name in self.labels if name is not None}
        return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))


def list_folder(folder: str | Path) -> Listing:
    """Files of ``folder/<class>/``, or of ``folder/<split>/<class>/``. Raises UserError for a layout that is neither."""
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"folder not found: {root}" if not root.exists() else f"{root} is not a folder")
    tops = _subfolders(root)
    if not tops:
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/<video files>")
    has_splits = all(top.lower() in SPLIT_NAMES for top in tops) and "train" in [SPLIT_NAMES[top.lower()] for top in tops]
    files: list[tuple[str, str, Split | None]] = []
    empty: list[str] = []
    for prefix, split in [(top, SPLIT_NAMES[top.lower()]) for top in tops] if has_splits else [("", None)]:
        names = _subfolders(root / prefix)
        if not names:
            raise UserError(f"{root / prefix} holds no class folders; expected {root / prefix}/<class>/<video files>")
        for name in names:
            found = _files(root, root / prefix / name)
            files += [(uri, name, split) for uri in found]
            empty += [] if found else [str(root / prefix / name)]
    if empty:
        raise UserError("class folders without a file; add videos or remove them:", first_few(empty))
    uris, labels, splits = zip(*files, strict=True)
    listing = Listing(str(root), "folder", uris, labels, (None,) * len(uris), splits if has_splits else None)
    return _with_test(_checked(listing))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path, folder: Path) -> list[str]:
    found = []
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(path, name).relative_to(root).as_posix() for name in sorted(names) if not name.startswith(".")]
    return found


def list_csv(file: str | Path, root: str | Path, columns: Mapping[str, str] | None = None) -> Listing:
    """Files that a CSV with a header names: path,label[,group,split], in any order; an empty label is an unknown one.

    ``columns`` says which of the file's columns stands for which of these. Raises UserError for an unreadable file, a
    missing column, an unknown split, a path named twice, a file that does not exist, and a group in two splits.
    """
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--root {folder} is not a folder")
    header, rows = _read_csv(Path(file))
    names = {name: (columns or {}).get(name, name) for name in COLUMNS}
    needed = [names[name] for name in COLUMNS if name in ("path", "label") or name in (columns or {})]
    if missing := [name for name in needed if name not in header]:
        has = f"{file} has no column {', '.join(missing)}; it has {', '.join(header)}"
        raise UserError(f"{has}. Map them with --columns path=...,label=...")
    has_splits = names["split"] in header
    splits = _parse_splits(file, [row[names["split"]] for row in rows]) if has_splits else None
    listing = Listing(
        root=str(folder),
        source="list",
        uris=tuple(row[names["path"]].strip().replace("\\", "/") for row in rows),
        labels=tuple(row[names["label"]].strip() or None for row in rows),
        groups=tuple((row.get(names["group"]) or "").strip() or None for row in rows),
        splits=splits,
    )
    _check_files(file, listing)
    return _with_test(_checked(listing))


def _read_csv(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"list not found: {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {file} cannot be read as UTF-8 text: {error}") from None
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [row for row in reader if any(row.values())]
    except csv.Error as error:
        raise UserError(f"list {file}, line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"list {file} holds no videos; expected a header path,label and a line for each video")
    if wrong := [n for n, row in enumerate(rows, start=2) if None in row or None in row.values()]:
        raise UserError(f"list {file}: line {wrong[0]} has not as many fields as the header")
    return [name.strip() for name in reader.fieldnames or ()], [{k.strip(): v for k, v in row.items()} for row in rows]


def _parse_splits(file: str | Path, texts: Sequence[str]) -> tuple[Split, ...]:
    wrong = sorted({text for text in texts if text.strip().lower() not in SPLIT_NAMES})
    if wrong:
        raise UserError(f"list {file}: unknown split {', '.join(map(repr, wrong[:SHOWN]))}; known are train, test and val")
    return tuple(SPLIT_NAMES[text.strip().lower()] for text in texts)


def _check_files(file: str | Path, listing: Listing) -> None:
    if remote := [uri for uri in listing.uris if "://" in uri]:
        raise UserError(f"list {file} names URIs, only local files can be probed:", first_few(remote))
    missing = [uri for uri in listing.uris if not os.path.isfile(locate(listing.root, uri))]
    if missing:
        what = "1 file that does" if len(missing) == 1 else f"{len(missing)} files that do"
        raise UserError(f"list {file} names {what} not exist below {listing.root}:", first_few(missing))


def _checked(listing: Listing) -> Listing:
    twice = [uri for uri, count in Counter(listing.uris).items() if count > 1]
    if twice:
        raise UserError("videos are listed more than once:", first_few(twice))
    unwritable = [repr(uri) for uri in listing.uris if not uri.isprintable() and _not_utf8(uri)]
    if unwritable:
        raise UserError("file names that are not UTF-8 cannot be stored; rename:", first_few(unwritable))
    if listing.splits is not None:
        check_groups(listing.uris, listing.groups, listing.splits)
    if len(listing.classes) < 2:
        raise UserError(f"at least 2 classes are needed, found {', '.join(listing.classes) or 'none'} in {listing.root}")
    return listing


def _not_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _with_test(listing: Listing) -> Listing:
    """A data set that comes with train and val only is tested on val."""
    if listing.splits is None or "test" in listing.splits:
        return listing
    if "val" in listing.splits:
        splits: tuple[Split, ...] = tuple("test" if split == "val" else split for split in listing.splits)
        return replace(listing, splits=splits, notes=("there is no test split: val is used as test",))
    return replace(listing, splits=None, notes=("there is no test split: one is drawn from train",))


def with_splits(listing: Listing, test_share: float, seed: int) -> Listing:
    """The listing with a drawn test split, unless it has one."""
    if listing.splits is not None:
        return listing
    drawn = draw_splits(listing.uris, listing.labels, listing.groups, test_share, seed)
    return replace(listing, splits=tuple(drawn))


def first_few(texts: Sequence[str]) -> list[str]:
    """The first 20 and how many more there are."""
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return [*texts[:SHOWN], *more]
