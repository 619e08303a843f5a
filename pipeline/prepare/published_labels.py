"""Label subsets that others published. Their videos are found in a manifest by the ends of their paths.

    svformer   list_ucf_1/train.csv                       /any/prefix/ucf101/videos/Archery/v_Archery_g18_c07.avi 2
    videossl   ucf101_train_5_percent_labeled_..txt       Archery/v_Archery_g18_c07 120 2     (path, frames, label)
               kinetics400_train_1_percent_labeled_..txt  pumping_fist/HfrG-Bt1bko_000012_000022.mp4 256
    list       one path a line, with or without a label: a number or a class's name; a header with path and label

Lines whose label marks an unlabeled video (such as -1) are left out, and counted.
The lists number the classes in other ways than the manifest: SVFormer's 100 % list of UCF-101 counts from 1, its 1 % list from
0. Some numbers are wrong: in the 40 % lists of HMDB51 by both, 54 of 2,094 clips have the number of a similar class (climb and
climb_stairs, kick and kick_ball, sword and sword_exercise). So classes come from the manifest, and contradictions are counted.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, list_first
from pipeline.manifest.label_subset import LabelSubset, make_subset
from pipeline.manifest.schema import Manifest
from pipeline.prepare.sources.file_search import VIDEO_SUFFIXES, read_lines, remove_video_suffix, to_nfc
from pipeline.prepare.sources.listing import raise_for_mistakes, require_videos
from pipeline.prepare.sources.synonyms import UNLABELED, find_splits, is_header, match_columns

LINE_PATTERNS = {
    "svformer": re.compile(r"(?P<path>\S.*?)[\s,]+(?P<label>-?\d+)"),
    "videossl": re.compile(r"(?P<path>\S.*?)(?:\s+\d+)?\s+(?P<label>-?\d+)"),
    "list": re.compile(r"(?P<path>\S.*?)(?:[\s,;]+(?P<label>-?\d+))?"),
}
"""Pattern of a line in each format."""
SUFFIX = "|".join(map(re.escape, sorted(VIDEO_SUFFIXES)))
LABEL_AFTER_SUFFIX = re.compile(rf"(?P<path>\S.*?(?:{SUFFIX})[\"']?)[\s,;]+(?P<label>\S.*)", re.IGNORECASE)
"""Pattern of a line of format ``list`` whose path has a video's suffix; the label after it may then be a word."""
MAX_CONTRADICTIONS = 0.1
"""Largest share of lines whose number stands for another class than the same number does in most lines."""


@dataclass(frozen=True)
class _Entry:
    path: str
    label: str | None
    line: str

    @property
    def parts(self) -> tuple[str, ...]:
        return _split_path(self.path)


def import_labels(
    manifest: Manifest, kind: str, file: str | Path, seed: int = 0, hold_out: float = 0.0
) -> tuple[LabelSubset, list[str]]:
    """Reads a published list and returns the subset that it names, and notes on its videos that are missing or broken here.

    ``kind`` is a key of ``LINE_PATTERNS``; ``hold_out`` is the share (0..1) of every class that is held out for validation.
    Raises UserError for malformed lines, videos that the manifest lacks or that fit two of its rows, videos of test or of
    unknown class, and numbers that contradict the manifest's classes in more than a tenth of the lines.
    """
    if find_splits(Path(file).stem) == {"unlabeled"}:
        raise UserError(f"{file}: its name says that its videos are unlabeled; name the list of the labeled ones")
    entries, notes = _select_labeled(_read(kind, str(file)), str(file))
    rows = _find_rows(manifest, entries, str(file))
    table = manifest.table.select(["split", "class", "status"]).take(rows).to_pydict()
    notes += _compare_classes(entries, table["split"], table["class"], str(file))
    usable = np.asarray(table["status"], dtype=object) == "ok"
    if not usable.any():
        raise UserError(f"{file}: none of its {len(rows)} videos can be used")
    lost = [entry.path for entry, is_usable in zip(entries, usable, strict=True) if not is_usable]
    notes += [f"{len(lost)} of {len(entries)} videos of {file} cannot be used here, the first: {lost[0]}"] if lost else []
    repeated = len(rows) - len(set(rows))
    notes += [f"{repeated} of {len(rows)} lines of {file} name a video that an earlier line names too"] if repeated else []
    unlabeled = sorted(set(manifest.classes) - set(np.asarray(table["class"], dtype=object)[usable]))
    notes += [f"classes without a label: {', '.join(list_first(unlabeled))}"] if unlabeled else []
    chosen = np.unique(np.asarray(rows, np.int64)[usable])
    return make_subset(manifest, chosen, f"{kind} {Path(Path(file).parent.name, Path(file).name)}", seed, hold_out), notes


def _read(kind: str, file: str) -> list[_Entry]:
    entries: list[_Entry] = []
    mistakes: list[str] = []
    lines = read_lines(file)
    delimiter = next((d for d in ",;\t " if lines and is_header(lines[0][1].split(d))), None)
    if delimiter is not None:
        return _read_with_header(file, lines, delimiter)
    for number, line in lines:
        match = LABEL_AFTER_SUFFIX.fullmatch(line.strip()) if kind == "list" else None
        match = match or LINE_PATTERNS[kind].fullmatch(line.strip())
        if match:
            entries.append(_Entry(match["path"].strip("\"'"), match["label"], f"{file}:{number}"))
        else:
            mistakes.append(f"{file}:{number}: not a line of a {kind} list: {line!r}")
    raise_for_mistakes(mistakes, f"list {file}")
    if not entries:
        raise UserError(f"list {file} names no videos")
    return entries


def _read_with_header(file: str, lines: Sequence[tuple[int, str]], delimiter: str) -> list[_Entry]:
    """The entries of a list with a header. Raises UserError."""
    header, *rows = csv.reader([line for _, line in lines], delimiter=delimiter, skipinitialspace=True)
    columns, problems = match_columns(header)
    problems += [] if "path" in columns or problems else [f"it has no column path; it has {', '.join(header)}"]
    if problems:
        raise UserError(f"{file}: {'; '.join(problems)}. Write the header as path,label")
    origins = [f"{file}:{number}" for number, _ in lines[1:]]
    raise_for_mistakes(
        [
            f"{origin}: {len(row)} fields, the header has {len(header)}"
            for origin, row in zip(origins, rows, strict=True)
            if len(row) != len(header)
        ],
        f"list {file}",
    )
    require_videos(rows, f"list {file}")
    path, label = header.index(columns["path"]), header.index(columns["label"]) if "label" in columns else None
    return [_Entry(row[path].strip(), None if label is None else row[label].strip(), origin)
            for row, origin in zip(rows, origins, strict=True)]  # fmt: skip


def _select_labeled(entries: Sequence[_Entry], file: str) -> tuple[list[_Entry], list[str]]:
    """The entries without those whose label marks unlabeled videos, and a note on the latter. Raises UserError for none."""

    def is_unlabeled(entry: _Entry) -> bool:
        return entry.label is not None and entry.label.strip("\"'").lower() in UNLABELED

    unlabeled = [entry for entry in entries if is_unlabeled(entry)]
    labeled = [entry for entry in entries if not is_unlabeled(entry)]
    if not labeled:
        raise UserError(f"list {file} names no labeled videos: all labels mark unlabeled ones, as {unlabeled[0].line} does")
    count = f"{len(unlabeled)} of {len(entries)} lines of {file} mark unlabeled videos and are left out"
    return labeled, [f"{count}, the first: {unlabeled[0].path}"] if unlabeled else []


def _split_path(path: str) -> tuple[str, ...]:
    """The parts of a path from the name without a video's suffix up to the root, with underscores instead of spaces."""
    *folders, name = path.replace("\\", "/").split("/")
    return tuple(to_nfc(part).replace(" ", "_") for part in (remove_video_suffix(name), *reversed(folders)))


def _find_rows(manifest: Manifest, entries: Sequence[_Entry], file: str) -> list[int]:
    """The manifest's row of every entry: the one whose path has the longest end in common with the entry's."""
    wanted = {entry.parts[0].casefold() for entry in entries}
    candidates: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for row, video_id in enumerate(manifest.table["id"].to_pylist()):
        parts = _split_path(video_id)
        if parts[0].casefold() in wanted:  # HandStandPushups is HandstandPushups in some lists
            candidates[parts[0].casefold()].append((row, parts))
    rows: list[int] = []
    missing: list[str] = []
    ambiguous: list[str] = []
    for entry in entries:
        fits = [
            ((entry.parts[0] == parts[0], _count_common(entry.parts, parts)), row)
            for row, parts in candidates[entry.parts[0].casefold()]
        ]
        best = [row for fit, row in fits if fit == max(fits)[0]]
        missing += [] if best else [f"{entry.line}: {entry.path}"]
        ambiguous += [f"{entry.line}: {entry.path}"] if len(best) > 1 else []
        rows += best[:1]
    if missing:
        raise UserError(f"{len(missing)} of {len(entries)} videos of {file} are not in {manifest.path}:", list_first(missing))
    if ambiguous:
        raise UserError(f"videos of {file} fit several in {manifest.path}; write more of their paths:", list_first(ambiguous))
    return rows


def _count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The number of equal parts at the beginning of both."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _compare_classes(entries: Sequence[_Entry], splits: Sequence[str], classes: Sequence[str | None], file: str) -> list[str]:
    """Notes on labels that contradict the manifest's classes.

    A few contradictions are mistakes in the list. Many mean another data set or another order of files: raises UserError.
    """
    problems: list[str] = []
    class_counts: dict[str | None, Counter[str]] = defaultdict(Counter)
    for entry, split, name in zip(entries, splits, classes, strict=True):
        if split not in ("train", "unlabeled"):
            problems.append(f"{entry.line}: {entry.path} is a {split} video")
        if name is None:
            problems.append(f"{entry.line}: the class of {entry.path} is unknown")
        else:
            class_counts[entry.label][name] += 1
    if problems:
        raise UserError(f"list {file} does not fit the manifest:", list_first(problems))
    class_of_label = {label: _find_class(label, counts) for label, counts in class_counts.items()}
    contradictions = [
        f"{entry.line}: {_describe_label(entry.label, class_of_label[entry.label])} and {name} here"
        for entry, name in zip(entries, classes, strict=True)
        if entry.label is not None and class_of_label[entry.label] != name
    ]
    if len(contradictions) > MAX_CONTRADICTIONS * len(entries):
        raise UserError(f"list {file} does not fit the manifest's classes:", list_first(contradictions))
    count = f"{len(contradictions)} of {len(entries)} lines of {file} give another class than the manifest, whose is used"
    return [f"{count}; the first: {contradictions[0]}"] if contradictions else []


def _find_class(label: str | None, counts: Counter[str]) -> str:
    """The class that a label stands for: for a number the one in most of its lines, for a word the class of that name."""
    if label is None or label.isdecimal():
        return counts.most_common(1)[0][0]
    word = label.strip("\"'")
    return next((name for name in counts if _normalize(name) == _normalize(word)), word)


def _normalize(name: str) -> str:
    return to_nfc(name).casefold().replace(" ", "_")


def _describe_label(label: str, class_name: str) -> str:
    return f"label {label} is {class_name} elsewhere" if label.isdecimal() else f"the label says {class_name}"
