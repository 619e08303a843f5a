"""``list``: text files with one video a line, as the field's programs read them.

    PySlowFast, VideoMAE   some/path.mp4 3          mmaction2 videos      some/path.mp4 3
    UniFormer              some/path.mp4,3          mmaction2 rawframes   some/folder 127 3   (path, frames, label)
    Jester, SSv1           some_id;label name       with offset           some/folder 2 127 3 (path, offset, frames, label)
    with a header          path,label,group,split,start,end in any order

The delimiter is detected; fields are split off from the right, so that paths may contain it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UserError, first_few
from pipeline.files import storage
from pipeline.manifest.schema import Split, locate
from pipeline.prepare.sources.class_list import read_classes
from pipeline.prepare.sources.file_search import existing_folder, find_files, is_video_name, open_root, plain_path, read_lines
from pipeline.prepare.sources.frames import image_patterns
from pipeline.prepare.sources.listing import Listing, agree, checked, missing_note, outside, refuse
from pipeline.prepare.sources.synonyms import (
    COLUMNS,
    NO_GROUP,
    SPLITS,
    UNLABELED,
    columns_of,
    is_header,
    label_of,
    split_of,
    splits_in,
)

LAYOUTS = {1: ("path", "label"), 2: ("path", "frames", "label"), 3: ("path", "offset", "frames", "label")}
"""Columns of a list without a header, by how many numbers end its lines."""
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " "}
NUMBER = re.compile(r"\d+|-1")
"""A label, a number of frames or an offset; -1 marks unlabeled videos."""


@dataclass(frozen=True)
class ListOptions:
    """How to read lists; every field has a command-line option of its name."""

    root: str
    """Folder or URI that the paths start from."""
    columns: Mapping[str, str] | None = None
    """Which column of the file is path, label, ...: its name in the header, or its number from 1."""
    delimiter: str | None = None
    """None: detected."""
    classes: str | None = None
    """File with a class name a line, in the order of the labels: labels are then numbers or names of it."""
    frame_rate: float | None = None
    """Frames per second, where the paths are frame folders."""
    frame_pattern: str | None = None
    """Of their images, for example ``img_%05d.jpg``; None: found out."""
    unlabeled: tuple[str, ...] | None = None
    """Labels that mark videos of unknown class; None: those that can be nothing else."""


@dataclass(frozen=True)
class _Row:
    path: str
    label: str | None
    group: str | None
    split: Split | None
    start: float | None
    end: float | None
    place: str

    @property
    def id(self) -> str:
        cut = self.start is not None or self.end is not None
        return f"{self.path}#{self.start or 0:g}-{'' if self.end is None else f'{self.end:g}'}" if cut else self.path


def list_files(files: Sequence[str | Path], options: ListOptions) -> Listing:
    """Videos of one list, or of several of different splits: ``train=FILE``, or files whose names say train, val or test.

    Raises UserError for unreadable files, malformed lines, labels outside the class list, lists that disagree, a path named
    twice, a group in two splits, and lists of which not one file exists.
    """
    root = open_root(options.root, "--root")
    if options.delimiter is not None and options.delimiter not in DELIMITERS and len(options.delimiter) != 1:
        raise UserError(f"--delimiter {options.delimiter!r} must be {', '.join(DELIMITERS)} or one character")
    classes = read_classes(options.classes) if options.classes else None
    mistakes: list[str] = []
    read_notes: list[str] = []
    rows: list[_Row] = []
    for word in files:
        split, file = _split_of(str(word), several=len(files) > 1)
        rows += [_below(root, row) for row in _read(file, options, classes, split, mistakes, read_notes)]
    names = " and ".join(map(str, files))
    refuse(mistakes or _mixed_labels(rows, classes), f"list {names}")
    agree([(row.id, (row.label, row.split), row.place) for row in rows], "the lists" if len(files) > 1 else f"lines of {names}")
    if len({row.split is None for row in rows}) > 1:
        first = next(row.place for row in rows if row.split is None)
        remedy = "write train=FILE for every one" if len(files) > 1 else "fill in the split of every row, or of none"
        raise UserError(f"only some rows of {names} have a split, {first} has none; {remedy}")
    found = _find(root, rows, options)
    if not options.columns:
        _refuse_unread_header(rows, found)
    splits = tuple(row.split for row in rows if row.split is not None)
    parts = [row.split or "without split" for row in rows]
    notes = missing_note(root, parts, [uri is not None for uri in found], f"list {names}")
    return checked(Listing(
        root=root,
        source="list",
        uris=tuple(uri or row.path for uri, row in zip(found, rows, strict=True)),
        labels=tuple(row.label for row in rows),
        groups=tuple(row.group for row in rows),
        splits=splits or None,
        notes=(*read_notes, *notes),
        ids=tuple(row.id for row in rows),
        starts=tuple(row.start for row in rows),
        ends=tuple(row.end for row in rows),
        places=tuple(row.place for row in rows),
        class_list=None if classes is None else tuple(classes.values()),
        frame_rate=options.frame_rate,
    ))  # fmt: skip


def parse_columns(words: str) -> dict[str, str]:
    """``path=file,label=action`` as a mapping. Raises UserError naming what is not understood."""
    pairs = dict(word.partition("=")[::2] for word in words.split(",") if word)
    if zero := [name for name, column in pairs.items() if column.isdecimal() and int(column) < 1]:
        raise UserError(f"--columns: {', '.join(zero)}: columns are numbered from 1")
    if wrong := [name for name, column in pairs.items() if name not in COLUMNS or not column]:
        raise UserError(f"--columns: {', '.join(wrong)} is not understood; write some of {'=...,'.join(COLUMNS)}=...")
    return pairs


def _split_of(word: str, several: bool) -> tuple[Split | None, str]:
    """The split that ``train=FILE``, or one of several files by its name, says; and the file."""
    name, equals, path = word.partition("=")
    if equals and split_of(name):
        return split_of(name), path
    said = splits_in(Path(word).stem) if several else set()
    if len(said) > 1:
        raise UserError(f"list {word}: its name says {' and '.join(sorted(said))}; write train={word}, or whichever it is")
    return next(iter(said), None), word


def _read(
    file: str,
    options: ListOptions,
    classes: dict[str, str] | None,
    split: Split | None,
    mistakes: list[str],
    notes: list[str],
) -> list[_Row]:
    lines = read_lines(file)
    delimiter = DELIMITERS.get(options.delimiter or "", options.delimiter) or _detect([line for _, line in lines[:200]])
    given = dict(options.columns or {})
    header = _header(lines[0][1], delimiter, given) if lines else None
    if not lines[1 if header else 0 :]:
        raise UserError(f"list {file} holds no videos; expected a line for each, for example: some/path.mp4{delimiter}3")
    if (header and not all(column.isdecimal() for column in given.values())) or (header and not given):
        layout = _named(file, header, given, ("path",) if split == "unlabeled" else ("path", "label"), notes)
    else:
        layout = _numbered(lines, delimiter, given)
    if "frames" in layout and options.frame_rate is None and not header:
        raise UserError(
            f"list {file} has lines of a path and {len(layout) - 1} numbers, as of frame folders: say with --fps how many "
            "frames make a second (lists with several labels a video are not supported)"
        )
    if not header and not given and split != "unlabeled" and all(_is_path_alone(line, delimiter) for _, line in lines):
        raise UserError(
            f"list {file} has paths without labels, the first: {lines[0][1].strip()}. If the classes of its videos are "
            f"unknown, write unlabeled={file} beside the lists of labeled videos, train=FILE and test=FILE; else add the labels"
        )
    rows = []
    for number, line in lines[1 if header else 0 :]:
        place = f"{file}:{number}"
        try:
            fields = _fields(line, delimiter, header, given, len(layout), split == "unlabeled")
            values = {name: fields[at].strip() for name, at in layout.items()}
            label = label_of(values.get("label", ""), classes, options.unlabeled)
            rows.append(_row(values, label, classes, split, place))
        except (ValueError, csv.Error) as error:
            mistakes.append(f"{place}: {error}")
    return rows


def _detect(lines: Sequence[str]) -> str:
    """The delimiter before a final number, for paths may contain the others, or that stands in every line.

    In most of the lines will do, where none stands in all: a malformed line must not make the others malformed too.
    """
    rows = [line.strip() for line in lines[1:] or lines]

    def ends_in_number(line: str, delimiter: str) -> bool:
        return delimiter in line and NUMBER.fullmatch(line.rpartition(delimiter)[2].strip()) is not None

    ending = {d: sum(ends_in_number(line, d) for line in rows) for d in DELIMITERS.values()}
    present = {d: sum(d in line for line in rows) for d in DELIMITERS.values()}
    most = len(rows) // 2 + 1
    for counts, least in ((ending, len(rows)), (ending, most), (present, len(rows)), (present, most)):
        if rows and (found := [d for d, count in counts.items() if count >= least]):
            return found[0]
    return ","


def _header(line: str, delimiter: str, given: Mapping[str, str]) -> list[str] | None:
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    return names if is_header(names) or any(not column.isdecimal() for column in given.values()) else None


def _named(
    file: str, header: list[str], given: Mapping[str, str], needed: Sequence[str], notes: list[str]
) -> dict[str, int]:
    """Column -> place, of a list with a header."""
    found, unclear = columns_of(header, given.values())
    names = {**{name: field for name, field in found.items() if name not in given}, **given}
    unclear = [sentence for sentence in unclear if sentence.rpartition(" ")[2] not in given]
    missing = [given.get(name, name) for name in needed if name not in names]
    missing += [column for column in given.values() if column not in header]
    if missing and not unclear:
        unclear = [f"it has no column {', '.join(missing)}; it has {', '.join(header)}"]
    if unclear:
        unlabeled = f", or write unlabeled={file} if its videos have no label" if missing == ["label"] else ""
        raise UserError(f"{file}: {'; '.join(unclear)}. Map them with --columns path=...,label=...{unlabeled}")
    if read := [f"{name} from {field}" for name, field in names.items() if name != field and name not in given]:
        unused = [field for field in header if field not in names.values()]
        notes.append(f"header of {file}: {', '.join(read)}" + (f"; not used: {', '.join(unused)}" if unused else ""))
    return {name: header.index(column) for name, column in names.items()}


def _numbered(lines: Sequence[tuple[int, str]], delimiter: str, given: Mapping[str, str]) -> dict[str, int]:
    """Column -> place, of a list without a header."""
    if given:
        return {name: int(column) - 1 for name, column in given.items()}
    ends = sorted(_trailing_numbers(line, delimiter) for _, line in lines[:200])
    fewest = ends[len(ends) // 10]  # of the lines but a tenth, which may be malformed
    return {name: place for place, name in enumerate(LAYOUTS[min(max(fewest, 1), 3)])}


def _trailing_numbers(line: str, delimiter: str) -> int:
    fields = [field.strip() for field in line.strip().split(delimiter if delimiter != " " else None)]
    numbers = [bool(NUMBER.fullmatch(field)) for field in reversed(fields[1:])]
    return numbers.index(False) if False in numbers else len(numbers)


def _fields(
    line: str, delimiter: str, header: list[str] | None, given: Mapping[str, str], count: int, unlabeled: bool
) -> list[str]:
    if header is None and not given:
        if unlabeled and _is_path_alone(line, delimiter):
            return [line.strip().strip('"'), *[""] * (count - 1)]  # an unlabeled list may be one of paths alone
        fields = line.strip().rsplit(None if delimiter == " " else delimiter, count - 1)
        if len(fields) != count:
            mark = "; write -1 as its label if the class is unknown" if _is_path_alone(line, delimiter) else ""
            raise ValueError(f"expected {count} fields, found {line!r}{mark}")
        return [field.strip().strip('"') for field in fields]
    fields = next(csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True))
    needed = len(header) if header else max(map(int, given.values()))
    if len(fields) != needed if header else len(fields) < needed:
        raise ValueError(f"{len(fields)} fields, {'the header has' if header else '--columns names'} {needed}")
    return fields


def _is_path_alone(line: str, delimiter: str) -> bool:
    """Whether a line of a list without a header names a video and no label."""
    return is_video_name(line.strip()) or len(line.split(None if delimiter == " " else delimiter)) == 1


def _row(
    fields: Mapping[str, str], label: str | None, classes: dict[str, str] | None, split: Split | None, place: str
) -> _Row:
    path = fields["path"].replace("\\", "/")
    if not path:
        raise ValueError("the path is empty")
    for name in ("frames", "offset"):
        if not (fields.get(name) or "0").isdecimal():
            raise ValueError(f"{name} must be a number, found {fields[name]!r}")
    if label is not None and classes is not None and label not in classes.values():
        raise ValueError(outside(label, classes))
    if fields.get("split"):
        said = split_of(fields["split"])
        if said is None:
            raise ValueError(f"unknown split {fields['split']!r}; known are {', '.join(SPLITS)}")
        split = said
    times = [None if (text := fields.get(name, "")).lower() in UNLABELED else text for name in ("start", "end")]
    start, end = (None if text is None else float(text) for text in times)
    if not 0 <= (start or 0) < (float("inf") if end is None else end):
        raise ValueError(f"start {start} and end {end} are no time range")
    group = fields.get("group", "")
    return _Row(path, label, None if group.lower() in NO_GROUP else group, split, start, end, place)


def _mixed_labels(rows: Sequence[_Row], classes: dict[str, str] | None) -> list[str]:
    """Rows whose label is a word where most have numbers, or the other way: comments, a header, lists of another kind."""
    if classes is not None:
        return []
    numbers = [row for row in rows if row.label is not None and row.label.isdecimal()]
    words = [row for row in rows if row.label is not None and not row.label.isdecimal()]
    few, others = (words, "numbers") if len(words) <= len(numbers) else (numbers, "words")
    reason = f"and the other labels are {others}; name all classes with --classes FILE if both are meant"
    return [f"{row.place}: the label is {row.label}, {reason}" for row in few] if numbers and words else []


def _refuse_unread_header(rows: Sequence[_Row], found: Sequence[str | None]) -> None:
    """Raises UserError where a first line alone names no file and is written as no other: a header of unknown words."""

    def kind(row: _Row) -> tuple[bool, bool, bool]:
        return is_video_name(row.path), "/" in row.path, row.path.isdecimal()

    first = rows[0] if rows else None
    if first is None or first.place.rpartition(":")[2] != "1" or found[0] is not None:
        return
    rest = [row for row, uri in zip(rows[1:], found[1:], strict=True) if uri is not None]
    if rest and kind(first) not in {kind(row) for row in rest}:
        words = f"{first.path} and {first.label}" if first.label else first.path
        remedy = "name the columns with --columns path=...,label=..., by these words, or by numbers from 1 if it is a video"
        raise UserError(f"{first.place} names no file and looks like a header of unknown words ({words}): {remedy}")


def _below(root: str, row: _Row) -> _Row:
    """An absolute path below the root as a relative one, so that ids do not change when the root moves."""
    rest = row.path.removeprefix(f"{root}/")
    return row if rest == row.path or rest.startswith("/") else replace(row, path=rest)


def _find(root: str, rows: Sequence[_Row], options: ListOptions) -> list[str | None]:
    if options.frame_rate is None:
        return find_files(root, [row.path for row in rows])
    found: list[str | None] = []
    torn: list[str] = []
    for row in rows:
        folder = existing_folder(root, plain_path(row.path))
        series = image_patterns(_images(root, folder), options.frame_pattern)
        torn += [f"{row.path}: {' and '.join(series)}"] if len(series) > 1 else []
        found.append(f"{folder}/{series[0]}" if series else None)
    if torn:
        raise UserError("frame folders with several series of images; choose one with --frame-pattern:", first_few(torn))
    return found


def _images(root: str, folder: str) -> list[str]:
    try:
        return storage.list_names(locate(root, folder))
    except OSError:
        return []
