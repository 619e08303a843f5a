"""The source ``list``: finds the videos of one list or several, which ``list_rows`` reads, and checks that they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UserError, list_first
from pipeline.files import storage
from pipeline.manifest.schema import Split, resolve_uri
from pipeline.prepare.sources.class_list import read_classes
from pipeline.prepare.sources.file_search import (
    find_existing_folder,
    find_files,
    is_video_name,
    resolve_root,
    simplify_path,
)
from pipeline.prepare.sources.frames import find_image_patterns
from pipeline.prepare.sources.list_rows import DELIMITERS, ListOptions, ListRow, read_rows
from pipeline.prepare.sources.listing import (
    Listing,
    describe_missing_files,
    raise_for_mistakes,
    require_agreement,
    sort_classes,
    validate_listing,
)
from pipeline.prepare.sources.synonyms import find_splits, parse_split


def list_files(files: Sequence[str | Path], options: ListOptions) -> Listing:
    """Lists the videos of one list, or of several for different splits.

    The split of a list follows from ``train=FILE`` or from the file's name, if it says train, val or test.

    Raises UserError for unreadable files, malformed lines, labels outside the class list, lists that disagree, a path named
    twice, a group in two splits, and lists of which not one file exists.
    """
    root = resolve_root(options.root, "--root")
    if options.delimiter is not None and options.delimiter not in DELIMITERS and len(options.delimiter) != 1:
        raise UserError(f"--delimiter {options.delimiter!r} must be {', '.join(DELIMITERS)} or one character")
    classes = read_classes(options.classes) if options.classes else None
    mistakes: list[str] = []
    read_notes: list[str] = []
    rows: list[ListRow] = []
    for word in files:
        split, file = _parse_argument(str(word), has_several=len(files) > 1)
        rows += [_make_relative(root, row) for row in read_rows(file, options, classes, split, mistakes, read_notes)]
    names = " and ".join(map(str, files))
    raise_for_mistakes(mistakes or _find_mixed_labels(rows, classes), f"list {names}")
    source = "the lists" if len(files) > 1 else f"lines of {names}"
    require_agreement([(row.id, (row.label, row.split), row.line) for row in rows], source)
    if len({row.split is None for row in rows}) > 1:
        first = next(row.line for row in rows if row.split is None)
        remedy = "write train=FILE for every one" if len(files) > 1 else "fill in the split of every row, or of none"
        raise UserError(f"only some rows of {names} have a split, {first} has none; {remedy}")
    uris = _find_videos(root, rows, options)
    if not options.columns:
        _check_for_unread_header(rows, uris)
    splits = tuple(row.split for row in rows if row.split is not None)
    split_names = [row.split or "without split" for row in rows]
    notes = describe_missing_files(root, split_names, [uri is not None for uri in uris], f"list {names}")
    class_list = None if classes is None else tuple(classes.values())
    if options.other_classes:
        class_list = class_list or sort_classes(row.label for row in rows if row.split != "unlabeled")
        notes += _describe_other_classes([row.label for row in rows if row.label is not None and row.label not in class_list])
    return validate_listing(Listing(
        root=root,
        source="list",
        uris=tuple(uri or row.path for uri, row in zip(uris, rows, strict=True)),
        labels=tuple(row.label for row in rows),
        groups=tuple(row.group for row in rows),
        splits=splits or None,
        notes=(*read_notes, *notes),
        ids=tuple(row.id for row in rows),
        starts=tuple(row.start for row in rows),
        ends=tuple(row.end for row in rows),
        listed_at=tuple(row.line for row in rows),
        class_list=class_list,
        frame_rate=options.frame_rate,
    ))  # fmt: skip


def _parse_argument(word: str, has_several: bool) -> tuple[Split | None, str]:
    """The split that ``train=FILE`` says, or the name of one of several files; and the file."""
    name, equals, path = word.partition("=")
    if equals and parse_split(name):
        return parse_split(name), path
    splits = find_splits(Path(word).stem) if has_several else set()
    if len(splits) > 1:
        raise UserError(f"list {word}: its name says {' and '.join(sorted(splits))}; write train={word}, or whichever it is")
    return next(iter(splits), None), word


def _find_mixed_labels(rows: Sequence[ListRow], classes: dict[str, str] | None) -> list[str]:
    """Rows whose label is a word where most are numbers, or the reverse: comments, a header, or a list of another kind."""
    if classes is not None:
        return []
    numbers = [row for row in rows if row.label is not None and row.label.isdecimal()]
    words = [row for row in rows if row.label is not None and not row.label.isdecimal()]
    few, kind_of_others = (words, "numbers") if len(words) <= len(numbers) else (numbers, "words")
    reason = f"and the other labels are {kind_of_others}; name all classes with --classes FILE if both are meant"
    return [f"{row.line}: the label is {row.label}, {reason}" for row in few] if numbers and words else []


def _describe_other_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """A note on the videos that show none of the classes, if there are any."""
    names = ", ".join(list_first(sorted(set(labels))))
    return (f"videos of split unlabeled that show none of the classes: {len(labels)} ({names})",) if labels else ()


def _check_for_unread_header(rows: Sequence[ListRow], uris: Sequence[str | None]) -> None:
    """Raises UserError where only the first line names no file and it looks unlike the others: a header of unknown words."""

    def form(row: ListRow) -> tuple[bool, bool, bool]:
        return is_video_name(row.path), "/" in row.path, row.path.isdecimal()

    first = rows[0] if rows else None
    if first is None or first.line.rpartition(":")[2] != "1" or uris[0] is not None:
        return
    existing = [row for row, uri in zip(rows[1:], uris[1:], strict=True) if uri is not None]
    if existing and form(first) not in {form(row) for row in existing}:
        words = f"{first.path} and {first.label}" if first.label else first.path
        remedy = "name the columns with --columns path=...,label=..., by these words, or by numbers from 1 if it is a video"
        raise UserError(f"{first.line} names no file and looks like a header of unknown words ({words}): {remedy}")


def _make_relative(root: str, row: ListRow) -> ListRow:
    """The row with a path relative to the root if the path is absolute and below it, so that ids survive a move of the root."""
    relative = row.path.removeprefix(f"{root}/")
    return row if relative == row.path or relative.startswith("/") else replace(row, path=relative)


def _find_videos(root: str, rows: Sequence[ListRow], options: ListOptions) -> list[str | None]:
    """The uri of each row's file or frame folder, or None where it is missing."""
    if options.frame_rate is None:
        return find_files(root, [row.path for row in rows])
    uris: list[str | None] = []
    ambiguous: list[str] = []
    for row in rows:
        folder = find_existing_folder(root, simplify_path(row.path))
        patterns = find_image_patterns(_list_images(root, folder), options.frame_pattern)
        ambiguous += [f"{row.path}: {' and '.join(patterns)}"] if len(patterns) > 1 else []
        uris.append(f"{folder}/{patterns[0]}" if patterns else None)
    if ambiguous:
        raise UserError("frame folders with several series of images; choose one with --frame-pattern:", list_first(ambiguous))
    return uris


def _list_images(root: str, folder: str) -> list[str]:
    try:
        return storage.list_names(resolve_uri(root, folder))
    except OSError:
        return []


def list_paths(file: str, root: str) -> list[tuple[str, str, float | None, float | None]]:
    """Lists the videos of a list whose labels do not matter; lines may be paths alone.

    Returns (root, path as it is on the disk, start, end) of each line, times in seconds. Raises UserError for an unreadable
    file and for malformed lines. A path of which no file exists is returned as listed.
    """
    folder = resolve_root(root, "--root")
    mistakes: list[str] = []
    rows = read_rows(file, ListOptions(folder), None, "unlabeled", mistakes, [])
    raise_for_mistakes(mistakes, f"list {file}")
    uris = find_files(folder, [row.path for row in rows])
    return [(folder, uri or row.path, row.start, row.end) for row, uri in zip(rows, uris, strict=True)]
