"""Reads one list of videos: a text file with a video per line, in the formats that the field's programs read.

    PySlowFast, VideoMAE   some/path.mp4 3          mmaction2 videos      some/path.mp4 3
    UniFormer              some/path.mp4,3          mmaction2 rawframes   some/folder 127 3   (path, frames, label)
    Jester, SSv1           some_id;label name       with offset           some/folder 2 127 3 (path, offset, frames, label)
    with a header          path,label,group,split,start,end in any order

The delimiter is detected. Lines are split into fields from the right, so that paths may contain the delimiter.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.prepare.sources.file_search import is_video_name, read_lines
from pipeline.prepare.sources.listing import describe_unknown_label
from pipeline.prepare.sources.synonyms import (
    COLUMNS,
    NO_GROUP,
    SPLIT_WORDS,
    UNLABELED,
    is_header,
    match_columns,
    parse_label,
    parse_split,
)

COLUMNS_WITHOUT_HEADER = {1: ("path", "label"), 2: ("path", "frames", "label"), 3: ("path", "offset", "frames", "label")}
"""Columns of a list without a header, by the number of numeric fields at the end of its lines."""
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " "}
NUMBER = re.compile(r"\d+|-1")
"""A numeric field: a label, of which -1 marks unlabeled videos, a number of frames, or an offset."""


@dataclass(frozen=True)
class ListOptions:
    """How to read lists; every field has a command-line option of the same or a similar name."""

    root: str
    """Folder or URI that the paths start from."""
    columns: Mapping[str, str] | None = None
    """The column of the file that is path, label, and so on: its name in the header, or its number from 1."""
    delimiter: str | None = None
    """A key of ``DELIMITERS`` or a character; None: detected."""
    classes: str | None = None
    """Class list, as ``read_classes`` reads it; labels in the lists are then numbers or names of it."""
    frame_rate: float | None = None
    """Frames per second, where the paths are frame folders."""
    frame_pattern: str | None = None
    """Pattern of the images in frame folders, for example ``img_%05d.jpg``; None: detected."""
    unlabeled: tuple[str, ...] | None = None
    """Labels that mark videos of unknown class; None: those that cannot mean anything else."""
    other_classes: bool = False
    """Whether rows of split unlabeled may have labels of other classes than the rest: such videos show none of the classes."""


@dataclass(frozen=True)
class ListRow:
    """A line of a list, with what its fields mean."""

    path: str
    label: str | None
    group: str | None
    split: Split | None
    start: float | None
    end: float | None
    line: str
    """Where the video is listed, for example ``train.csv:3``."""

    @property
    def id(self) -> str:
        """The path, with the time range if it is a part of a video."""
        is_segment = self.start is not None or self.end is not None
        return f"{self.path}#{self.start or 0:g}-{'' if self.end is None else f'{self.end:g}'}" if is_segment else self.path


def parse_columns(words: str) -> dict[str, str]:
    """Parses ``path=file,label=action`` to a mapping. Raises UserError that names what is not understood."""
    pairs = dict(word.partition("=")[::2] for word in words.split(",") if word)
    if zero := [name for name, column in pairs.items() if column.isdecimal() and int(column) < 1]:
        raise UserError(f"--columns: {', '.join(zero)}: columns are numbered from 1")
    if unknown := [name for name, column in pairs.items() if name not in COLUMNS or not column]:
        raise UserError(f"--columns: {', '.join(unknown)} is not understood; write some of {'=...,'.join(COLUMNS)}=...")
    return pairs


def read_rows(
    file: str,
    options: ListOptions,
    classes: dict[str, str] | None,
    split: Split | None,
    mistakes: list[str],
    notes: list[str],
) -> list[ListRow]:
    """Reads the rows of one list.

    Args:
        file: The path of the list.
        options: How to read it.
        classes: The class names by label, as ``read_classes`` returns them; None without a class list.
        split: The split of the whole list, or ``unlabeled``; None if it does not have one.
        mistakes: A sentence about each malformed line is added to it.
        notes: Sentences about guesses are added to it.

    Raises:
        UserError: the file cannot be read, or it is not understood as a whole.
    """
    lines = read_lines(file)
    delimiter = DELIMITERS.get(options.delimiter or "", options.delimiter)
    delimiter = delimiter or _detect_delimiter([line for _, line in lines[:200]])
    given = dict(options.columns or {})
    header = _parse_header(lines[0][1], delimiter, given) if lines else None
    if not lines[1 if header else 0 :]:
        raise UserError(f"list {file} holds no videos; expected a line for each, for example: some/path.mp4{delimiter}3")
    if (header and not all(column.isdecimal() for column in given.values())) or (header and not given):
        required = ("path",) if split == "unlabeled" else ("path", "label")
        positions = _find_named_columns(file, header, given, required, notes)
    else:
        positions = _find_numbered_columns(lines, delimiter, given)
    if "frames" in positions and options.frame_rate is None and not header:
        raise UserError(
            f"list {file} has lines of a path and {len(positions) - 1} numbers, as of frame folders: say with --fps how many "
            "frames make a second (lists with several labels a video are not supported)"
        )
    if not header and not given and split != "unlabeled" and all(_is_path_alone(line, delimiter) for _, line in lines):
        raise UserError(
            f"list {file} has paths without labels, the first: {lines[0][1].strip()}. If the classes of its videos are "
            f"unknown, write unlabeled={file} beside the lists of labeled videos, train=FILE and test=FILE; else add the labels"
        )
    rows = []
    for number, line in lines[1 if header else 0 :]:
        origin = f"{file}:{number}"
        try:
            fields = _split_line(line, delimiter, header, given, len(positions), split == "unlabeled")
            values = {name: fields[position].strip() for name, position in positions.items()}
            label = parse_label(values.get("label", ""), classes, options.unlabeled)
            rows.append(_make_row(values, label, classes, split, origin, options.other_classes))
        except (ValueError, csv.Error) as error:
            mistakes.append(f"{origin}: {error}")
    return rows


def _detect_delimiter(lines: Sequence[str]) -> str:
    """The delimiter before a number at the end of every line, since paths may contain the others, or one in every line.

    Where no delimiter is in all lines, one in most lines is taken: a malformed line must not make all others malformed.
    """
    rows = [line.strip() for line in lines[1:] or lines]

    def has_number_at_end(line: str, delimiter: str) -> bool:
        return delimiter in line and NUMBER.fullmatch(line.rpartition(delimiter)[2].strip()) is not None

    ending = {d: sum(has_number_at_end(line, d) for line in rows) for d in DELIMITERS.values()}
    present = {d: sum(d in line for line in rows) for d in DELIMITERS.values()}
    most = len(rows) // 2 + 1
    for counts, least in ((ending, len(rows)), (ending, most), (present, len(rows)), (present, most)):
        if rows and (delimiters := [d for d, count in counts.items() if count >= least]):
            return delimiters[0]
    return ","


def _parse_header(line: str, delimiter: str, given: Mapping[str, str]) -> list[str] | None:
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    return names if is_header(names) or any(not column.isdecimal() for column in given.values()) else None


def _find_named_columns(
    file: str, header: list[str], given: Mapping[str, str], required: Sequence[str], notes: list[str]
) -> dict[str, int]:
    """The position of each column of a list with a header; adds a note on fields whose meaning was guessed."""
    matched, problems = match_columns(header, given.values())
    names = {**{name: field for name, field in matched.items() if name not in given}, **given}
    problems = [sentence for sentence in problems if sentence.rpartition(" ")[2] not in given]
    missing = [given.get(name, name) for name in required if name not in names]
    missing += [column for column in given.values() if column not in header]
    if missing and not problems:
        problems = [f"it has no column {', '.join(missing)}; it has {', '.join(header)}"]
    if problems:
        unlabeled = f", or write unlabeled={file} if its videos have no label" if missing == ["label"] else ""
        raise UserError(f"{file}: {'; '.join(problems)}. Map them with --columns path=...,label=...{unlabeled}")
    if guessed := [f"{name} from {field}" for name, field in names.items() if name != field and name not in given]:
        unused = [field for field in header if field not in names.values()]
        notes.append(f"header of {file}: {', '.join(guessed)}" + (f"; not used: {', '.join(unused)}" if unused else ""))
    return {name: header.index(column) for name, column in names.items()}


def _find_numbered_columns(lines: Sequence[tuple[int, str]], delimiter: str, given: Mapping[str, str]) -> dict[str, int]:
    """The position of each column of a list without a header."""
    if given:
        return {name: int(column) - 1 for name, column in given.items()}
    counts = sorted(_count_trailing_numbers(line, delimiter) for _, line in lines[:200])
    fewest = counts[len(counts) // 10]  # without a tenth of the lines, which may be malformed
    return {name: position for position, name in enumerate(COLUMNS_WITHOUT_HEADER[min(max(fewest, 1), 3)])}


def _count_trailing_numbers(line: str, delimiter: str) -> int:
    fields = [field.strip() for field in line.strip().split(delimiter if delimiter != " " else None)]
    are_numbers = [bool(NUMBER.fullmatch(field)) for field in reversed(fields[1:])]
    return are_numbers.index(False) if False in are_numbers else len(are_numbers)


def _split_line(
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
    expected = len(header) if header else max(map(int, given.values()))
    if len(fields) != expected if header else len(fields) < expected:
        raise ValueError(f"{len(fields)} fields, {'the header has' if header else '--columns names'} {expected}")
    return fields


def _is_path_alone(line: str, delimiter: str) -> bool:
    """Whether a line of a list without a header names a video and no label."""
    return is_video_name(line.strip()) or len(line.split(None if delimiter == " " else delimiter)) == 1


def _make_row(
    fields: Mapping[str, str],
    label: str | None,
    classes: dict[str, str] | None,
    split: Split | None,
    line: str,
    has_other_classes: bool,
) -> ListRow:
    path = fields["path"].replace("\\", "/")
    if not path:
        raise ValueError("the path is empty")
    for name in ("frames", "offset"):
        if not (fields.get(name) or "0").isdecimal():
            raise ValueError(f"{name} must be a number, found {fields[name]!r}")
    if fields.get("split"):
        split = parse_split(fields["split"])
        if split is None:
            raise ValueError(f"unknown split {fields['split']!r}; known are {', '.join(SPLIT_WORDS)}")
    may_be_other = has_other_classes and split == "unlabeled"
    if label is not None and classes is not None and label not in classes.values() and not may_be_other:
        raise ValueError(describe_unknown_label(label, classes))
    times = [None if (text := fields.get(name, "")).lower() in UNLABELED else text for name in ("start", "end")]
    start, end = (None if text is None else float(text) for text in times)
    if not 0 <= (start or 0) < (float("inf") if end is None else end):
        raise ValueError(f"start {start} and end {end} are not a time range")
    group = fields.get("group", "")
    return ListRow(path, label, None if group.lower() in NO_GROUP else group, split, start, end, line)
