"""``kinetics``: the CSV lists of Kinetics-400, -600 and -700 and whatever of their clips was downloaded.

    label,youtube_id,time_start,time_end,split[,is_cc]
    "air drumming",_dbcJuKJQNs,40,50,val,0

Clips are looked for by name at any depth below the folder: cut ones as ``ID_START_END.mp4`` with six digits, or whole
videos as ``ID.mp4``, of which the listed seconds are used. Files that are no videos by their name do not count
(``ID_START_END.json``), and a clip in the folder ``replacement_for_corrupted_k400`` is taken in place of the damaged one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.manifest.schema import Split, locate
from pipeline.prepare.sources.file_search import (
    composed,
    files_below,
    is_video_name,
    one_of_each,
    open_root,
    read_lines,
    refuse_unclear,
    video_stem,
)
from pipeline.prepare.sources.listing import Listing, agree, checked, missing_note, recordings, refuse, some
from pipeline.prepare.sources.synonyms import columns_of, label_of, split_of, splits_in

REPLACEMENTS = re.compile(r"replacement_for_corrupted_k\d+")
NEEDED = {"path": "youtube_id", "start": "time_start", "end": "time_end"}
"""Columns, and what they are called in the official lists."""


@dataclass(frozen=True)
class _Clip:
    video: str
    start: float
    end: float
    label: str | None
    split: Split
    place: str

    @property
    def id(self) -> str:
        return f"{self.video}_{int(self.start):06d}_{int(self.end):06d}"


def list_kinetics(folder: str | Path, lists: Sequence[str | Path]) -> Listing:
    """All clips of the lists; those that were never downloaded are listed as missing. Labels follow the sorted class names.

    Raises UserError for lines that do not fit, lists that disagree, and when not one clip is there.
    """
    root = open_root(folder)
    mistakes: list[str] = []
    clips = [clip for file in lists for clip in _read(str(file), mistakes)]
    refuse(mistakes, " and ".join(map(str, lists)))
    some(clips, " and ".join(map(str, lists)))
    agree([(clip.id, (clip.label, clip.split), clip.place) for clip in clips], "the lists")
    known = [clip for clip in clips if clip.label is not None or clip.split != "test"]
    notes = [f"{len(clips) - len(known)} test clips have no label and are left out"] if len(known) < len(clips) else []
    files = _files(root)
    candidates = [_candidates(files, clip) for clip in known]
    refuse_unclear([f"{clip.id}: {' and '.join(c)}" for clip, c in zip(known, candidates, strict=True) if _several(root, c)])
    found = [names[0] if names else None for names in candidates]
    replaced = sum(uri is not None and _is_replacement(uri) for uri in found)
    notes += [f"{replaced} clips are taken from replacement_for_corrupted_k*, in place of damaged ones"] if replaced else []
    notes += missing_note(root, [clip.split for clip in known], [uri is not None for uri in found], "the lists")
    whole = [uri is not None and video_stem(uri) == clip.video for uri, clip in zip(found, known, strict=True)]
    groups, torn = recordings([clip.video for clip in known], [clip.split for clip in known])
    return checked(Listing(
        root=root,
        source=f"kinetics {len({clip.label for clip in known} - {None})} classes",
        uris=tuple(uri or f"{clip.id}.mp4" for uri, clip in zip(found, known, strict=True)),
        labels=tuple(clip.label for clip in known),
        groups=groups,
        splits=tuple(clip.split for clip in known),
        notes=(*notes, *torn),
        ids=tuple(clip.id for clip in known),
        starts=tuple(clip.start if cut else None for clip, cut in zip(known, whole, strict=True)),
        places=tuple(clip.place for clip in known),
        ends=tuple(clip.end if cut else None for clip, cut in zip(known, whole, strict=True)),
    ))  # fmt: skip


def _read(file: str, mistakes: list[str]) -> Iterator[_Clip]:
    lines = read_lines(file)
    header = [name.strip() for name in next(csv.reader([lines[0][1]]))] if lines else []
    columns, unclear = columns_of(header)
    if lost := [name for column, name in NEEDED.items() if column not in columns]:
        unclear = [f"it has no column {', '.join(lost)}"]
    if unclear:
        raise UserError(f"{file}: {'; '.join(unclear)}; expected label,youtube_id,time_start,time_end,split")
    said = splits_in(PurePosixPath(file).stem)
    by_name = next(iter(said)) if len(said) == 1 else None
    if "split" not in columns and by_name is None:
        raise UserError(f"{file} has no column split, and its name does not say train, val or test")
    if "label" not in columns and by_name not in ("test", "unlabeled"):
        raise UserError(f"{file} has no column label; it has {', '.join(header)}")
    places = {column: header.index(name) for column, name in columns.items()}
    for number, line in lines[1:]:
        try:
            fields = next(csv.reader([line]))
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields, the header has {len(header)}")
            yield _clip({column: fields[at].strip() for column, at in places.items()}, by_name, f"{file}:{number}")
        except (ValueError, csv.Error) as error:
            mistakes.append(f"{file}:{number}: {error}")


def _clip(row: dict[str, str], by_name: Split | None, place: str) -> _Clip:
    start, end = float(row["start"]), float(row["end"])
    if not 0 <= start < end:
        raise ValueError(f"time_start {start:g} and time_end {end:g} are no time range")
    if not row["path"]:
        raise ValueError("youtube_id is empty")
    split = by_name if "split" not in row else split_of(row["split"])
    if split is None:
        raise ValueError(f"unknown split {row['split']!r}")
    label = label_of(row.get("label", ""), None, None)
    if label is None and split not in ("test", "unlabeled"):
        raise ValueError("the label is empty")
    return _Clip(row["path"], start, end, label, split, place)


def _files(root: str) -> dict[str, list[str]]:
    """Name without suffix -> video files of that name."""
    found: dict[str, list[str]] = {}
    for uri in files_below(root):
        if is_video_name(uri):
            found.setdefault(video_stem(uri), []).append(uri)
    return found


def _candidates(files: dict[str, list[str]], clip: _Clip) -> list[str]:
    """The clip's file: of several the replacement of a damaged one, else those whose folders name its split and class."""
    candidates = files.get(clip.id) or files.get(clip.video) or []
    candidates = [uri for uri in candidates if _is_replacement(uri)] or candidates
    signs = {clip.split, clip.label, (clip.label or "").replace(" ", "_")}
    fits = [len(signs.intersection(map(composed, uri.split("/")[:-1]))) for uri in candidates]
    return [uri for uri, fit in zip(candidates, fits, strict=True) if fit == max(fits)]


def _is_replacement(uri: str) -> bool:
    """Whether it lies in the folder of good copies that the Kinetics data set ships beside damaged ones."""
    return any(REPLACEMENTS.fullmatch(folder) for folder in uri.split("/")[:-1])


def _several(root: str, uris: Sequence[str]) -> bool:
    return len(uris) > 1 and len(one_of_each([locate(root, uri) for uri in uris])) > 1
