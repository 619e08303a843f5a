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

from pipeline import storage
from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Split, locate
from pipeline.manifest.sources.files import find_files, open_root, plain_path, read_lines
from pipeline.manifest.sources.frames import image_patterns
from pipeline.manifest.sources.listing import SPLIT_NAMES, Listing, agree, checked, missing_note, outside, refuse

COLUMNS = ("path", "label", "group", "split", "start", "end", "frames", "offset")
LAYOUTS = {1: ("path", "label"), 2: ("path", "frames", "label"), 3: ("path", "offset", "frames", "label")}
"""Columns of a list without a header, by how many numbers end its lines."""
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " "}
VIDEO = re.compile(r"\.\w{2,5}$")


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
    classes = _read_classes(options.classes) if options.classes else None
    mistakes: list[str] = []
    rows: list[_Row] = []
    for word in files:
        split, file = _split_of(str(word), several=len(files) > 1)
        rows += [_below(root, row) for row in _read(file, options, classes, split, mistakes)]
    names = " and ".join(map(str, files))
    refuse(mistakes, f"list {names}")
    agree([(row.id, (row.label, row.split), row.place) for row in rows], "the lists" if len(files) > 1 else f"lines of {names}")
    if len({row.split is None for row in rows}) > 1:
        raise UserError(f"only some of the lists {names} say train, val or test; write train=FILE for every one")
    found = _find(root, rows, options)
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
        notes=notes,
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
    name, equals, path = word.partition("=")
    if equals and name.lower() in SPLIT_NAMES:
        return SPLIT_NAMES[name.lower()], path
    words = re.split(r"[^a-z]+", Path(word).stem.lower())
    return next((SPLIT_NAMES[part] for part in words if part in SPLIT_NAMES), None) if several else None, word


def _read_classes(file: str) -> dict[str, str]:
    """Label as written in lists -> name. Lines are names, or numbers from 0 or 1 before names."""
    lines = [line.strip() for _, line in read_lines(file)]
    pairs = [re.fullmatch(r"(\d+)[\s,]+(.+)", line) for line in lines]
    if lines and all(pairs):
        classes = {pair[1]: pair[2] for pair in pairs if pair}
        first = min(map(int, classes))
        if first > 1 or sorted(map(int, classes)) != list(range(first, first + len(lines))):
            raise UserError(f"--classes {file}: the numbers must run from 0 or 1 without a gap")
        return dict(sorted(classes.items(), key=lambda item: int(item[0])))
    if len(set(lines)) < len(lines):
        raise UserError(f"--classes {file} names a class twice")
    return {str(number): line for number, line in enumerate(lines)}


def _read(
    file: str, options: ListOptions, classes: dict[str, str] | None, split: Split | None, mistakes: list[str]
) -> list[_Row]:
    lines = read_lines(file)
    delimiter = DELIMITERS.get(options.delimiter or "", options.delimiter) or _detect([line for _, line in lines[:200]])
    given = dict(options.columns or {})
    header = _header(lines[0][1], delimiter, given) if lines else None
    if not lines[1 if header else 0 :]:
        raise UserError(f"list {file} holds no videos; expected a line for each, for example: some/path.mp4{delimiter}3")
    layout = _named(file, header, given) if header else _numbered(lines, delimiter, given)
    if "frames" in layout and options.frame_rate is None and not header:
        raise UserError(
            f"list {file} has lines of a path and {len(layout) - 1} numbers, as of frame folders: say with --fps how many "
            "frames make a second (lists with several labels a video are not supported)"
        )
    rows = []
    for number, line in lines[1 if header else 0 :]:
        place = f"{file}:{number}"
        try:
            fields = _fields(line, delimiter, header, given, len(layout))
            rows.append(_row({name: fields[at].strip() for name, at in layout.items()}, classes, split, place))
        except (ValueError, csv.Error) as error:
            mistakes.append(f"{place}: {error}")
    return rows


def _detect(lines: Sequence[str]) -> str:
    """The delimiter before a final number, for paths may contain the others, or that stands in every line.

    In most of the lines will do, where none stands in all: a malformed line must not make the others malformed too.
    """
    rows = [line.strip() for line in lines[1:] or lines]
    ending = {d: sum(line.rpartition(d)[2].strip().isdecimal() for line in rows if d in line) for d in DELIMITERS.values()}
    present = {d: sum(d in line for line in rows) for d in DELIMITERS.values()}
    most = len(rows) // 2 + 1
    for counts, least in ((ending, len(rows)), (ending, most), (present, len(rows)), (present, most)):
        if rows and (found := [d for d, count in counts.items() if count >= least]):
            return found[0]
    return ","


def _header(line: str, delimiter: str, given: Mapping[str, str]) -> list[str] | None:
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    known = {*COLUMNS, *(column for column in given.values() if not column.isdecimal())}
    return names if known.intersection(names) or any(not column.isdecimal() for column in given.values()) else None


def _named(file: str, header: list[str], given: Mapping[str, str]) -> dict[str, int]:
    """Column -> place, of a list with a header."""
    names = {name: given.get(name, name) for name in COLUMNS}
    needed = [names[name] for name in COLUMNS if name in ("path", "label") or name in given]
    if missing := [name for name in needed if name not in header]:
        has = f"{file} has no column {', '.join(missing)}; it has {', '.join(header)}"
        raise UserError(f"{has}. Map them with --columns path=...,label=...")
    return {name: header.index(column) for name, column in names.items() if column in header}


def _numbered(lines: Sequence[tuple[int, str]], delimiter: str, given: Mapping[str, str]) -> dict[str, int]:
    """Column -> place, of a list without a header."""
    if given:
        return {name: int(column) - 1 for name, column in given.items()}
    ends = sorted(_trailing_numbers(line, delimiter) for _, line in lines[:200])
    fewest = ends[len(ends) // 10]  # of the lines but a tenth, which may be malformed
    return {name: place for place, name in enumerate(LAYOUTS[min(max(fewest, 1), 3)])}


def _trailing_numbers(line: str, delimiter: str) -> int:
    fields = [field.strip() for field in line.strip().split(delimiter if delimiter != " " else None)]
    numbers = [field.isdecimal() for field in reversed(fields[1:])]
    return numbers.index(False) if False in numbers else len(numbers)


def _fields(line: str, delimiter: str, header: list[str] | None, given: Mapping[str, str], count: int) -> list[str]:
    if header is None and not given:
        fields = line.strip().rsplit(None if delimiter == " " else delimiter, count - 1)
        if len(fields) != count:
            raise ValueError(f"expected {count} fields, found {line!r}")
        return [field.strip().strip('"') for field in fields]
    fields = next(csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True))
    needed = len(header) if header else max(map(int, given.values()))
    if len(fields) != needed if header else len(fields) < needed:
        raise ValueError(f"{len(fields)} fields, {'the header has' if header else '--columns names'} {needed}")
    return fields


def _row(fields: Mapping[str, str], classes: dict[str, str] | None, split: Split | None, place: str) -> _Row:
    path = fields["path"].replace("\\", "/")
    if not path:
        raise ValueError("the path is empty")
    for name in ("frames", "offset"):
        if not (fields.get(name) or "0").isdecimal():
            raise ValueError(f"{name} must be a number, found {fields[name]!r}")
    label = fields["label"] or None
    if label is not None and classes is not None:
        if label not in classes and label not in classes.values():
            raise ValueError(outside(label, classes))
        label = classes.get(label, label)
    if fields.get("split"):
        said = SPLIT_NAMES.get(fields["split"].lower())
        if said is None:
            raise ValueError(f"unknown split {fields['split']!r}; known are train, test, val and unlabeled")
        split = said
    start, end = (float(fields[name]) if fields.get(name) else None for name in ("start", "end"))
    if not 0 <= (start or 0) < (float("inf") if end is None else end):
        raise ValueError(f"start {start} and end {end} are no time range")
    return _Row(path, label, fields.get("group") or None, split, start, end, place)


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
        folder = plain_path(row.path)
        series = image_patterns(_images(root, folder), options.frame_pattern)
        torn += [f"{row.path}: {' and '.join(series)}"] if len(series) > 1 else []
        found.append(f"{folder}/{series[0]}" if series else None)
    if torn:
        raise UserError("frame folders with several series of images; choose one with --frame-pattern:", first_few(torn))
    return found


def _images(root: str, folder: str) -> list[str]:
    try:
        return storage.names(locate(root, folder))
    except OSError:
        return []
