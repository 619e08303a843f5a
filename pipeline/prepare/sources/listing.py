"""What every source returns, the files of a data set before they are opened; and the checks that all sources share."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.errors import UserError, list_first
from pipeline.manifest.schema import Split
from pipeline.manifest.splits import check_groups, draw_splits
from pipeline.prepare.sources.file_search import to_nfc

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The videos of a data set before their files are opened. Each tuple has one item per video, in the same order."""

    root: str
    """Folder or URI that relative uris start from."""
    source: str
    """Name and version of the data set, for example ``ucf101 split 1``."""
    uris: tuple[str, ...]
    """Files of the videos: relative to the root, with forward slashes, or absolute, or URIs. Of a frame folder it is FFmpeg's
    pattern of its images, for example ``run/v1/img_%05d.jpg``."""
    labels: tuple[str | None, ...]
    """Class names; None where the class is unknown."""
    groups: tuple[str | None, ...]
    """Group of each video, such as its recording or person; None where it has no group."""
    splits: tuple[Split, ...] | None
    """Split of each video; None where splits must be drawn."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the source was read."""
    ids: tuple[str, ...] | None = None
    """Unique names that stay the same when the files move; None: the uris."""
    starts: tuple[float | None, ...] | None = None
    """Seconds in the file at which each video begins; None, for all or for one: at the beginning of the file."""
    ends: tuple[float | None, ...] | None = None
    """Seconds in the file at which each video ends; None: at the end of the file."""
    class_list: tuple[str, ...] | None = None
    """All classes in the order of their labels, where the source has such a list."""
    listed_at: tuple[str, ...] | None = None
    """Where each video is listed, for messages, for example ``train.csv:3``; None where the source has no list files."""
    frame_rate: float | None = None
    """Frames per second of frame folders, which do not store it themselves; None where videos are files."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the source's own order, or else sorted by name, or by number where all names are numbers."""
        return sort_classes(self.labels) if self.class_list is None else self.class_list

    def select(self, indices: Sequence[int]) -> Listing:
        """Returns a listing of the videos at these indices."""

        def select_from(column: tuple[T, ...] | None) -> tuple[T, ...] | None:
            return None if column is None else tuple(column[index] for index in indices)

        if len(indices) == len(self.uris):
            return self
        return replace(
            self,
            uris=tuple(self.uris[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
            groups=tuple(self.groups[index] for index in indices),
            splits=select_from(self.splits),
            ids=select_from(self.ids),
            starts=select_from(self.starts),
            ends=select_from(self.ends),
            listed_at=select_from(self.listed_at),
        )


def sort_classes(labels: Iterable[str | None]) -> tuple[str, ...]:
    """Returns the names among labels once each, sorted, or by number where all names are numbers."""
    names = {name for name in labels if name is not None}
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))


def validate_listing(listing: Listing) -> Listing:
    """Checks a listing, and returns it with class names in one Unicode form (NFC) and with val as test if it has no test split.

    Raises UserError for what no data set may have: a video twice, a name that is not UTF-8, a group in two splits, fewer than
    two classes, a class that only rows of split unlabeled have.
    """
    listing = _normalize_class_names(listing)
    if repeated := _find_repeated_ids(listing):
        raise UserError("videos are listed more than once:", list_first(repeated))
    if sys.getfilesystemencoding() != "utf-8" and not all(uri.isascii() for uri in listing.uris):
        raise UserError(f"this system's names of files are {sys.getfilesystemencoding()}, not UTF-8: start the command with "
                        "PYTHONUTF8=1 in front, so that the names fit elsewhere too")  # fmt: skip
    invalid = [repr(uri) for uri in listing.uris if not uri.isprintable() and not _is_utf8(uri)]
    if invalid:
        raise UserError("file names that are not UTF-8 cannot be stored; rename:", list_first(invalid))
    if len(listing.classes) < 2:
        raise UserError(f"at least 2 classes are needed, found {', '.join(listing.classes) or 'none'} in {listing.root}")
    if listing.splits is not None:
        check_groups(listing.uris, listing.groups, listing.splits)
        _check_unlabeled_classes(listing, listing.splits)
    return _ensure_test_split(listing)


def _normalize_class_names(listing: Listing) -> Listing:
    """The listing with class names as NFC, and notes on names that differ only in spelling and on files in another form."""
    labels = tuple(None if name is None else to_nfc(name) for name in listing.labels)
    class_list = None if listing.class_list is None else tuple(map(to_nfc, listing.class_list))
    listing = replace(listing, labels=labels, class_list=class_list)
    alike: dict[str, list[str]] = {}
    for name in listing.classes:
        alike.setdefault(re.sub(r"[\s_-]+", "", name.casefold()), []).append(name)
    twins = [" and ".join(names) for names in alike.values() if len(names) > 1]
    notes = [f"classes whose names differ in spelling only: {', '.join(twins)}; rename them if they are one"] if twins else []
    ids = listing.ids or listing.uris
    changed = [uri for video_id, uri in zip(ids, listing.uris, strict=True) if _has_other_unicode_form(video_id, uri)]
    if changed:
        first = f"the first: {changed[0]}"
        notes.append(f"{len(changed)} files are listed in another Unicode form than their names have here, {first}")
    return replace(listing, notes=(*listing.notes, *notes))


def _has_other_unicode_form(video_id: str, uri: str) -> bool:
    """Whether a listed id (also of a part of a file or of a frame folder) and the uri of its file only look the same."""
    if video_id.isascii() or video_id in uri or uri in video_id:
        return False
    return to_nfc(video_id) in to_nfc(uri) or to_nfc(uri) in to_nfc(video_id)


def _check_unlabeled_classes(listing: Listing, splits: Sequence[Split]) -> None:
    """Raises UserError for classes of which no label can be learned: often a word in a list that stands for no class."""
    if listing.class_list is not None:
        return
    known = {name for name, split in zip(listing.labels, splits, strict=True) if split != "unlabeled"}
    origins = listing.listed_at or listing.uris
    unlabeled_only = {
        name: origin for name, origin in zip(listing.labels, origins, strict=True) if name is not None and name not in known
    }
    if unlabeled_only:
        raise UserError(
            "classes that are named only where videos are unlabeled; leave the label of such rows empty, or put the videos of "
            "unknown class directly into the unlabeled folder; if a list is to name what is not a class, say --other-classes:",
            list_first([f"{name}, for example {origin}" for name, origin in sorted(unlabeled_only.items())]),
        )


def _find_repeated_ids(listing: Listing) -> list[str]:
    """Ids that are not unique, with the lines that list them."""
    ids = listing.ids or listing.uris
    lines: dict[str, list[str]] = {video_id: [] for video_id, count in Counter(ids).items() if count > 1}
    for video_id, line in zip(ids, listing.listed_at or (), strict=False) if lines else ():
        if video_id in lines:
            lines[video_id].append(line)
    return [f"{video_id}, in {' and '.join(where)}" if where else video_id for video_id, where in lines.items()]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ensure_test_split(listing: Listing) -> Listing:
    """Use val as test where a data set comes with train and val only; where it has neither, leave the splits to be drawn."""
    if listing.splits is None or "test" in listing.splits:
        return listing
    if "val" in listing.splits:
        splits: tuple[Split, ...] = tuple("test" if split == "val" else split for split in listing.splits)
        return replace(listing, splits=splits, notes=(*listing.notes, "there is no test split: val is used as test"))
    note = "there is no test split: one is drawn from train"
    if "unlabeled" in listing.splits:
        raise UserError("there is no test split, and none can be drawn where a part is unlabeled: name the test videos too")
    return replace(listing, splits=None, notes=(*listing.notes, note))


def draw_missing_splits(listing: Listing, test_share: float, seed: int, usable: Sequence[bool] | None = None) -> Listing:
    """Returns the listing with splits, of which test is drawn at random unless the listing has splits already.

    Only ``usable`` videos (None: all) are drawn; the others are put into train, where nothing is learned from them.
    """
    if listing.splits is not None:
        return listing
    indices = range(len(listing.uris)) if usable is None else [index for index, is_usable in enumerate(usable) if is_usable]
    part = listing.select(indices)
    drawn = draw_splits(part.ids or part.uris, part.labels, part.groups, test_share, seed)
    splits: list[Split] = ["train"] * len(listing.uris)
    for index, split in zip(indices, drawn, strict=True):
        splits[index] = split
    return replace(listing, splits=tuple(splits))


def group_recordings(names: Sequence[str], splits: Sequence[Split]) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Groups the clips of official lists by the names of their recordings.

    A recording is a group if it has several clips and all are on one side of the split. Returns the groups, and a note on the
    recordings that the lists have on both sides.
    """
    counts = Counter(names)
    sides: dict[str, set[Split]] = {}
    for name, split in zip(names, splits, strict=True):
        sides.setdefault(name, set()).add("train" if split == "unlabeled" else split)
    straddling = {name for name, splits_of_name in sides.items() if len(splits_of_name) > 1}
    note = f"{len(straddling)} recordings lie in two splits of the official lists, which are kept as they are"
    groups = tuple(name if counts[name] > 1 and name not in straddling else None for name in names)
    return groups, (note,) if straddling else ()


def raise_for_mistakes(mistakes: Sequence[str], source: str) -> None:
    """Raises UserError with the first 20 mistakes in ``source`` and the number of the others, if there are any."""
    if mistakes:
        count = "1 line that" if len(mistakes) == 1 else f"{len(mistakes)} lines that"
        raise UserError(f"{source} has {count} cannot be used:", list_first(mistakes))


def require_videos(rows: Sequence[object], source: str) -> None:
    """Raises UserError where the list files of ``source`` have no rows."""
    if not rows:
        raise UserError(f"{source} names no videos: the lists are empty")


def require_agreement(rows: Iterable[tuple[str, object, str]], source: str) -> None:
    """Raises UserError for videos that are listed twice with different values; rows are (name, values, line that lists it)."""
    seen: dict[str, tuple[object, str]] = {}
    contradictions = []
    for name, values, line in rows:
        first_values, first_line = seen.setdefault(name, (values, line))
        if first_values != values:
            contradictions.append(f"{name}: {_join(first_values)} in {first_line}, {_join(values)} in {line}")
    if contradictions:
        raise UserError(f"{source} disagree:", list_first(contradictions))


def _join(values: object) -> str:
    return " ".join(str(value) for value in values if value is not None) if isinstance(values, tuple) else str(values)


def describe_missing_files(root: str, splits: Sequence[str], present: Sequence[bool], source: str) -> tuple[str, ...]:
    """Returns a note with the number of missing files by split, if any are missing. Raises UserError when all are."""
    missing = Counter(split for split, is_present in zip(splits, present, strict=True) if not is_present)
    if not missing:
        return ()
    if missing.total() == len(present):
        raise UserError(f"none of the {len(present)} files that {source} names lies below {root}; is this the right folder?")
    parts = ", ".join(f"{count} {split}" for split, count in sorted(missing.items()))
    return (f"{missing.total()} of {len(present)} files are missing below {root} ({parts}); they stay listed, and unused",)


def describe_unknown_label(label: str, classes: Mapping[str, str]) -> str:
    """Returns the message for a label that is not in the class list."""
    keys = list(classes)
    known = f"{len(keys)} classes, {keys[0]} to {keys[-1]}"
    return f"class {label} is outside the class list ({known}); leave it empty where the class is unknown"
