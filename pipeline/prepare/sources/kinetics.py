"""The source ``kinetics``: the CSV lists of Kinetics-400, -600 and -700, and those of their clips that were downloaded.

    label,youtube_id,time_start,time_end,split[,is_cc]
    "air drumming",_dbcJuKJQNs,40,50,val,0

Clips are looked for by name at any depth below the folder: as cut clips, ``ID_START_END.mp4`` with six digits, or as whole
videos, ``ID.mp4``, of which the listed seconds are used. Files without a video's suffix (``ID_START_END.json``) are ignored,
and a clip in the folder ``replacement_for_corrupted_k400`` is used instead of the damaged one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.manifest.schema import Split, resolve_uri
from pipeline.prepare.sources.file_search import (
    drop_repeated_files,
    is_video_name,
    list_files_below,
    raise_for_ambiguous,
    read_lines,
    remove_video_suffix,
    resolve_root,
    to_nfc,
)
from pipeline.prepare.sources.listing import (
    Listing,
    describe_missing_files,
    group_recordings,
    raise_for_mistakes,
    require_agreement,
    require_videos,
    validate_listing,
)
from pipeline.prepare.sources.synonyms import find_splits, match_columns, parse_label, parse_split

REPLACEMENTS = re.compile(r"replacement_for_corrupted_k\d+")
REQUIRED_COLUMNS = {"path": "youtube_id", "start": "time_start", "end": "time_end"}
"""Columns that a list must have, and their names in the official lists."""


@dataclass(frozen=True)
class _Clip:
    video: str
    start: float
    end: float
    label: str | None
    split: Split
    line: str

    @property
    def id(self) -> str:
        return f"{self.video}_{int(self.start):06d}_{int(self.end):06d}"


def list_kinetics(folder: str | Path, lists: Sequence[str | Path]) -> Listing:
    """Lists all clips of the CSV lists; those that were never downloaded are listed as missing.

    Labels follow the sorted class names. Raises UserError for malformed lines, for lists that disagree, and if no clip exists.
    """
    root = resolve_root(folder)
    mistakes: list[str] = []
    clips = [clip for file in lists for clip in _read(str(file), mistakes)]
    names = " and ".join(map(str, lists))
    raise_for_mistakes(mistakes, names)
    require_videos(clips, names)
    require_agreement([(clip.id, (clip.label, clip.split), clip.line) for clip in clips], "the lists")
    used = [clip for clip in clips if clip.label is not None or clip.split != "test"]
    notes = [f"{len(clips) - len(used)} test clips have no label and are left out"] if len(used) < len(clips) else []
    files = _find_clips(root, used)
    replaced = sum(uri is not None and _is_replacement(uri) for uri in files)
    notes += [f"{replaced} clips are taken from replacement_for_corrupted_k*, in place of damaged ones"] if replaced else []
    notes += describe_missing_files(root, [clip.split for clip in used], [uri is not None for uri in files], "the lists")
    is_whole = [uri is not None and remove_video_suffix(uri) == clip.video for uri, clip in zip(files, used, strict=True)]
    groups, straddling = group_recordings([clip.video for clip in used], [clip.split for clip in used])
    return validate_listing(Listing(
        root=root,
        source=f"kinetics {len({clip.label for clip in used} - {None})} classes",
        uris=tuple(uri or f"{clip.id}.mp4" for uri, clip in zip(files, used, strict=True)),
        labels=tuple(clip.label for clip in used),
        groups=groups,
        splits=tuple(clip.split for clip in used),
        notes=(*notes, *straddling),
        ids=tuple(clip.id for clip in used),
        starts=tuple(clip.start if whole else None for clip, whole in zip(used, is_whole, strict=True)),
        listed_at=tuple(clip.line for clip in used),
        ends=tuple(clip.end if whole else None for clip, whole in zip(used, is_whole, strict=True)),
    ))  # fmt: skip


def _read(file: str, mistakes: list[str]) -> Iterator[_Clip]:
    lines = read_lines(file)
    header = [name.strip() for name in next(csv.reader([lines[0][1]]))] if lines else []
    columns, problems = match_columns(header)
    if missing := [name for column, name in REQUIRED_COLUMNS.items() if column not in columns]:
        problems = [f"it has no column {', '.join(missing)}"]
    if problems:
        raise UserError(f"{file}: {'; '.join(problems)}; expected label,youtube_id,time_start,time_end,split")
    splits = find_splits(PurePosixPath(file).stem)
    split_of_file = next(iter(splits)) if len(splits) == 1 else None
    if "split" not in columns and split_of_file is None:
        raise UserError(f"{file} has no column split, and its name does not say train, val or test")
    if "label" not in columns and split_of_file not in ("test", "unlabeled"):
        raise UserError(f"{file} has no column label; it has {', '.join(header)}")
    positions = {column: header.index(name) for column, name in columns.items()}
    for number, line in lines[1:]:
        try:
            fields = next(csv.reader([line]))
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields, the header has {len(header)}")
            row = {column: fields[position].strip() for column, position in positions.items()}
            yield _make_clip(row, split_of_file, f"{file}:{number}")
        except (ValueError, csv.Error) as error:
            mistakes.append(f"{file}:{number}: {error}")


def _make_clip(row: dict[str, str], split_of_file: Split | None, line: str) -> _Clip:
    start, end = float(row["start"]), float(row["end"])
    if not 0 <= start < end:
        raise ValueError(f"time_start {start:g} and time_end {end:g} are not a time range")
    if not row["path"]:
        raise ValueError("youtube_id is empty")
    split = split_of_file if "split" not in row else parse_split(row["split"])
    if split is None:
        raise ValueError(f"unknown split {row['split']!r}")
    label = parse_label(row.get("label", ""), None, None)
    if label is None and split not in ("test", "unlabeled"):
        raise ValueError("the label is empty")
    return _Clip(row["path"], start, end, label, split, line)


def _find_clips(root: str, clips: Sequence[_Clip]) -> list[str | None]:
    """The file of each clip, or None. Raises UserError where several different files could be a clip."""
    files: dict[str, list[str]] = {}
    for uri in list_files_below(root):
        if is_video_name(uri):
            files.setdefault(remove_video_suffix(uri), []).append(uri)
    candidates = [_find_candidates(files, clip) for clip in clips]
    pairs = zip(clips, candidates, strict=True)
    raise_for_ambiguous([f"{clip.id}: {' and '.join(uris)}" for clip, uris in pairs if _are_several_files(root, uris)])
    return [uris[0] if uris else None for uris in candidates]


def _find_candidates(files: dict[str, list[str]], clip: _Clip) -> list[str]:
    """The files that may be a clip: replacements of a damaged one, or else those whose folders name its split and class.

    ``files`` are all videos by their name without suffix.
    """
    candidates = files.get(clip.id) or files.get(clip.video) or []
    candidates = [uri for uri in candidates if _is_replacement(uri)] or candidates
    hints = {clip.split, clip.label, (clip.label or "").replace(" ", "_")}
    matches = [len(hints.intersection(map(to_nfc, uri.split("/")[:-1]))) for uri in candidates]
    return [uri for uri, count in zip(candidates, matches, strict=True) if count == max(matches)]


def _is_replacement(uri: str) -> bool:
    """Whether a file lies in the folder of intact copies that the Kinetics data set has beside damaged ones."""
    return any(REPLACEMENTS.fullmatch(folder) for folder in uri.split("/")[:-1])


def _are_several_files(root: str, uris: Sequence[str]) -> bool:
    return len(uris) > 1 and len(drop_repeated_files([resolve_uri(root, uri) for uri in uris])) > 1
