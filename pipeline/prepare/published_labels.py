"""Label subsets that others published, matched to a manifest by the ends of their paths.

    svformer   list_ucf_1/train.csv                       /any/prefix/ucf101/videos/Archery/v_Archery_g18_c07.avi 2
    videossl   ucf101_train_5_percent_labeled_..txt       Archery/v_Archery_g18_c07 120 2     (path, frames, label)
               kinetics400_train_1_percent_labeled_..txt  pumping_fist/HfrG-Bt1bko_000012_000022.mp4 256
    list       one path a line, with or without a label: a number or a class's name; a header with path and label

Lines whose label marks an unlabeled video (-1 and the like) are left out, and counted.
Their numbers for classes are not ours: SVFormer's 100 % list of UCF-101 counts from 1, its 1 % list from 0. And some are
wrong: in the 40 % lists of HMDB51 by both, 54 of 2,094 clips carry the number of a sister class (climb and climb_stairs, kick
and kick_ball, sword and sword_exercise). So classes come from the manifest, and contradictions are counted.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, first_few
from pipeline.manifest.label_subset import LabelSubset, make_subset
from pipeline.manifest.schema import Manifest
from pipeline.prepare.sources.file_search import VIDEO_SUFFIXES, composed, read_lines, video_stem
from pipeline.prepare.sources.listing import refuse, some
from pipeline.prepare.sources.synonyms import UNLABELED, columns_of, is_header, splits_in

LINES = {
    "svformer": re.compile(r"(?P<path>\S.*?)[\s,]+(?P<label>-?\d+)"),
    "videossl": re.compile(r"(?P<path>\S.*?)(?:\s+\d+)?\s+(?P<label>-?\d+)"),
    "list": re.compile(r"(?P<path>\S.*?)(?:[\s,;]+(?P<label>-?\d+))?"),
}
"""A line of each format."""
SUFFIX = "|".join(map(re.escape, sorted(VIDEO_SUFFIXES)))
WITH_WORD = re.compile(rf"(?P<path>\S.*?(?:{SUFFIX})[\"']?)[\s,;]+(?P<label>\S.*)", re.IGNORECASE)
"""A line of a ``list`` whose label may be a word: behind the suffix of a video."""
MAX_CONTRADICTIONS = 0.1
"""Share of lines whose number may stand for another class than it mostly does."""


@dataclass(frozen=True)
class _Entry:
    path: str
    label: str | None
    place: str

    @property
    def parts(self) -> tuple[str, ...]:
        return _parts(self.path)


def import_labels(
    manifest: Manifest, kind: str, file: str | Path, seed: int = 0, hold_out: float = 0.0
) -> tuple[LabelSubset, list[str]]:
    """The subset that a published list names, and notes on videos of it that are missing or broken here.

    Raises UserError for malformed lines, videos that the manifest lacks or that fit two of its rows, videos of test or of
    unknown class, and numbers that contradict the manifest's classes in more than a tenth of the lines.
    """
    if splits_in(Path(file).stem) == {"unlabeled"}:
        raise UserError(f"{file}: its name says that its videos are unlabeled; name the list of the labeled ones")
    entries, notes = _labeled(_read(kind, str(file)), str(file))
    rows = _match(manifest, entries, str(file))
    table = manifest.table.select(["split", "class", "status"]).take(rows).to_pydict()
    notes += _check(entries, table["split"], table["class"], str(file))
    usable = np.asarray(table["status"], dtype=object) == "ok"
    if not usable.any():
        raise UserError(f"{file}: none of its {len(rows)} videos can be used")
    lost = [entry.path for entry, fine in zip(entries, usable, strict=True) if not fine]
    notes += [f"{len(lost)} of {len(entries)} videos of {file} cannot be used here, the first: {lost[0]}"] if lost else []
    again = len(rows) - len(set(rows))
    notes += [f"{again} of {len(rows)} lines of {file} name a video that an earlier line names too"] if again else []
    unlabeled = sorted(set(manifest.classes) - set(np.asarray(table["class"], dtype=object)[usable]))
    notes += [f"classes without a label: {', '.join(first_few(unlabeled))}"] if unlabeled else []
    chosen = np.unique(np.asarray(rows, np.int64)[usable])
    return make_subset(manifest, chosen, f"{kind} {Path(Path(file).parent.name, Path(file).name)}", seed, hold_out), notes


def _read(kind: str, file: str) -> list[_Entry]:
    entries: list[_Entry] = []
    mistakes: list[str] = []
    lines = read_lines(file)
    delimiter = next((d for d in ",;\t " if lines and is_header(lines[0][1].split(d))), None)
    if delimiter is not None:
        return _below_header(file, lines, delimiter)
    for number, line in lines:
        match = (WITH_WORD.fullmatch(line.strip()) if kind == "list" else None) or LINES[kind].fullmatch(line.strip())
        if match:
            entries.append(_Entry(match["path"].strip("\"'"), match["label"], f"{file}:{number}"))
        else:
            mistakes.append(f"{file}:{number}: not a line of a {kind} list: {line!r}")
    refuse(mistakes, f"list {file}")
    if not entries:
        raise UserError(f"list {file} names no videos")
    return entries


def _below_header(file: str, lines: Sequence[tuple[int, str]], delimiter: str) -> list[_Entry]:
    """Entries of a list with a header. Raises UserError."""
    header, *rows = csv.reader([line for _, line in lines], delimiter=delimiter, skipinitialspace=True)
    columns, unclear = columns_of(header)
    unclear += [] if "path" in columns or unclear else [f"it has no column path; it has {', '.join(header)}"]
    if unclear:
        raise UserError(f"{file}: {'; '.join(unclear)}. Write the header as path,label")
    places = [f"{file}:{number}" for number, _ in lines[1:]]
    odd = [(place, len(row)) for place, row in zip(places, rows, strict=True) if len(row) != len(header)]
    wrong = [f"{place}: {count} fields, the header has {len(header)}" for place, count in odd]
    refuse(wrong, f"list {file}")
    some(rows, f"list {file}")
    path, label = header.index(columns["path"]), header.index(columns["label"]) if "label" in columns else None
    return [_Entry(row[path].strip(), None if label is None else row[label].strip(), place)
            for row, place in zip(rows, places, strict=True)]  # fmt: skip


def _labeled(entries: Sequence[_Entry], file: str) -> tuple[list[_Entry], list[str]]:
    """The entries but those that their label says are unlabeled, and a note on these. Raises UserError where none is left."""

    def is_marked(entry: _Entry) -> bool:
        return entry.label is not None and entry.label.strip("\"'").lower() in UNLABELED

    marked = [entry for entry in entries if is_marked(entry)]
    kept = [entry for entry in entries if not is_marked(entry)]
    if not kept:
        raise UserError(f"list {file} names no labeled videos: all labels mark unlabeled ones, as {marked[0].place} does")
    count = f"{len(marked)} of {len(entries)} lines of {file} mark unlabeled videos and are left out"
    return kept, [f"{count}, the first: {marked[0].path}"] if marked else []


def _parts(path: str) -> tuple[str, ...]:
    """From the name without a video's suffix up to the root; spaces and underscores are the same, as in names of classes."""
    *folders, name = path.replace("\\", "/").split("/")
    return tuple(composed(part).replace(" ", "_") for part in (video_stem(name), *reversed(folders)))


def _match(manifest: Manifest, entries: Sequence[_Entry], file: str) -> list[int]:
    """A row for every entry: the one whose path shares the longest end with it."""
    wanted = {entry.parts[0].casefold() for entry in entries}
    rows: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for row, name in enumerate(manifest.table["id"].to_pylist()):
        parts = _parts(name)
        if parts[0].casefold() in wanted:  # HandStandPushups is HandstandPushups in some lists
            rows[parts[0].casefold()].append((row, parts))
    found: list[int] = []
    lost: list[str] = []
    torn: list[str] = []
    for entry in entries:
        fits = [((entry.parts[0] == p[0], _common(entry.parts, p)), row) for row, p in rows[entry.parts[0].casefold()]]
        best = [row for length, row in fits if length == max(fits)[0]]
        lost += [] if best else [f"{entry.place}: {entry.path}"]
        torn += [f"{entry.place}: {entry.path}"] if len(best) > 1 else []
        found += best[:1]
    if lost:
        raise UserError(f"{len(lost)} of {len(entries)} videos of {file} are not in {manifest.path}:", first_few(lost))
    if torn:
        raise UserError(f"videos of {file} fit several in {manifest.path}; write more of their paths:", first_few(torn))
    return found


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _check(entries: Sequence[_Entry], splits: Sequence[str], classes: Sequence[str | None], file: str) -> list[str]:
    """Notes on contradictions, of which a few are the list's; many mean another data set or another order of files."""
    problems: list[str] = []
    meanings: dict[str | None, Counter[str]] = defaultdict(Counter)
    for entry, split, name in zip(entries, splits, classes, strict=True):
        if split not in ("train", "unlabeled"):
            problems.append(f"{entry.place}: {entry.path} is a {split} video")
        if name is None:
            problems.append(f"{entry.place}: the class of {entry.path} is unknown")
        else:
            meanings[entry.label][name] += 1
    if problems:
        raise UserError(f"list {file} does not fit the manifest:", first_few(problems))
    usual = {label: _meaning(label, counts) for label, counts in meanings.items()}
    wrong = [
        f"{entry.place}: {_said(entry.label, usual[entry.label])} and {name} here"
        for entry, name in zip(entries, classes, strict=True)
        if entry.label is not None and usual[entry.label] != name
    ]
    if len(wrong) > MAX_CONTRADICTIONS * len(entries):
        raise UserError(f"list {file} does not fit the manifest's classes:", first_few(wrong))
    count = f"{len(wrong)} of {len(entries)} lines of {file} give another class than the manifest, whose is used"
    return [f"{count}; the first: {wrong[0]}"] if wrong else []


def _meaning(label: str | None, counts: Counter[str]) -> str:
    """The class that a label stands for: the one that it mostly has, of a word the class of that name."""
    if label is None or label.isdecimal():
        return counts.most_common(1)[0][0]
    word = label.strip("\"'")
    return next((name for name in counts if _word(name) == _word(word)), word)


def _word(name: str) -> str:
    return composed(name).casefold().replace(" ", "_")


def _said(label: str, meaning: str) -> str:
    return f"label {label} is {meaning} elsewhere" if label.isdecimal() else f"the label says {meaning}"
