"""What every source returns: the files of a data set before they are opened, and the checks that all sources share."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Split
from pipeline.manifest.splits import check_groups, draw_splits
from pipeline.prepare.sources.file_search import composed

T = TypeVar("T")

@dataclass(frozen=True)
class Listing:
    """Files of a data set before they are opened; the sequences run in parallel."""

    root: str
    """Folder or URI that relative uris start from."""
    source: str
    """Name and version, for example ``ucf101 split 1``."""
    uris: tuple[str, ...]
    """Relative to the root, with forward slashes, or absolute, or URIs. Of a frame folder: FFmpeg's pattern of its images,
    for example ``run/v1/img_%05d.jpg``."""
    labels: tuple[str | None, ...]
    """Class names; None where unknown."""
    groups: tuple[str | None, ...]
    """Videos of one recording or person; None: alone."""
    splits: tuple[Split, ...] | None
    """None: to be drawn."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the source was read."""
    ids: tuple[str, ...] | None = None
    """Unique names that survive a move; None: the uris."""
    starts: tuple[float | None, ...] | None = None
    """Seconds in the file where the video begins; None: at the beginning, in all or in one."""
    ends: tuple[float | None, ...] | None = None
    """Seconds in the file where the video ends."""
    class_list: tuple[str, ...] | None = None
    """All classes in the order of their labels, where the source has such a list."""
    places: tuple[str, ...] | None = None
    """Where each is listed, for messages: ``train.csv:3``; None: in no list."""
    frame_rate: float | None = None
    """Frames per second of frame folders, which do not say it themselves; None: these are video files."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's own order; else sorted by name, or as numbers where all of them are."""
        if self.class_list is not None:
            return self.class_list
        names = {name for name in self.labels if name is not None}
        return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))

    def only(self, places: Sequence[int]) -> Listing:
        """The same of some of its videos, by their places."""

        def some_of(column: tuple[T, ...] | None) -> tuple[T, ...] | None:
            return None if column is None else tuple(column[place] for place in places)

        if len(places) == len(self.uris):
            return self
        return replace(
            self,
            uris=tuple(self.uris[place] for place in places),
            labels=tuple(self.labels[place] for place in places),
            groups=tuple(self.groups[place] for place in places),
            splits=some_of(self.splits),
            ids=some_of(self.ids),
            starts=some_of(self.starts),
            ends=some_of(self.ends),
            places=some_of(self.places),
        )


def checked(listing: Listing) -> Listing:
    """The listing, with val as test where there is no test split, and class names in the same Unicode form (NFC).

    Raises UserError for what no data set may have: a video twice, a name that is not UTF-8, a group in two splits, fewer than
    two classes, a class that only rows of split unlabeled name.
    """
    listing = _with_one_spelling(listing)
    if twice := _twice(listing):
        raise UserError("videos are listed more than once:", first_few(twice))
    if sys.getfilesystemencoding() != "utf-8" and not all(uri.isascii() for uri in listing.uris):
        raise UserError(f"this system's names of files are {sys.getfilesystemencoding()}, not UTF-8: start the command with "
                        "PYTHONUTF8=1 in front, so that the names fit elsewhere too")  # fmt: skip
    unwritable = [repr(uri) for uri in listing.uris if not uri.isprintable() and _not_utf8(uri)]
    if unwritable:
        raise UserError("file names that are not UTF-8 cannot be stored; rename:", first_few(unwritable))
    if len(listing.classes) < 2:
        raise UserError(f"at least 2 classes are needed, found {', '.join(listing.classes) or 'none'} in {listing.root}")
    if listing.splits is not None:
        check_groups(listing.uris, listing.groups, listing.splits)
        _check_unlabeled(listing, listing.splits)
    return _with_test(listing)


def _with_one_spelling(listing: Listing) -> Listing:
    """Class names as NFC; notes on those that differ in case, spaces or underscores only, and on files found so."""
    labels = tuple(None if name is None else composed(name) for name in listing.labels)
    class_list = None if listing.class_list is None else tuple(map(composed, listing.class_list))
    listing = replace(listing, labels=labels, class_list=class_list)
    alike: dict[str, list[str]] = {}
    for name in listing.classes:
        alike.setdefault(re.sub(r"[\s_-]+", "", name.casefold()), []).append(name)
    twins = [" and ".join(names) for names in alike.values() if len(names) > 1]
    notes = [f"classes whose names differ in spelling only: {', '.join(twins)}; rename them if they are one"] if twins else []
    other = [uri for name, uri in zip(listing.ids or listing.uris, listing.uris, strict=True) if _other_form(name, uri)]
    if other:
        notes.append(f"{len(other)} files are listed in another Unicode form than their names have here, the first: {other[0]}")
    return replace(listing, notes=(*listing.notes, *notes))


def _other_form(name: str, uri: str) -> bool:
    """Whether a listed name (of a part of a file or a frame folder too) and where it was found only look the same."""
    if name.isascii() or name in uri or uri in name:
        return False
    return composed(name) in composed(uri) or composed(uri) in composed(name)


def _check_unlabeled(listing: Listing, splits: Sequence[Split]) -> None:
    """Raises UserError for classes of which nothing could ever be learned: often a word that stands for no class."""
    if listing.class_list is not None:
        return
    known = {name for name, split in zip(listing.labels, splits, strict=True) if split != "unlabeled"}
    names = listing.places or listing.uris
    alone = {name: where for name, where in zip(listing.labels, names, strict=True) if name is not None and name not in known}
    if alone:
        raise UserError(
            "classes that are named only where videos are unlabeled; leave the label of such rows empty, or put the videos of "
            "unknown class directly into the unlabeled folder:",
            first_few([f"{name}, for example {where}" for name, where in sorted(alone.items())]),
        )


def _twice(listing: Listing) -> list[str]:
    """Ids that are not unique, with the lines that list them."""
    ids = listing.ids or listing.uris
    lines: dict[str, list[str]] = {name: [] for name, count in Counter(ids).items() if count > 1}
    for name, place in zip(ids, listing.places or (), strict=False) if lines else ():
        if name in lines:
            lines[name].append(place)
    return [f"{name}, in {' and '.join(where)}" if where else name for name, where in lines.items()]


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
        return replace(listing, splits=splits, notes=(*listing.notes, "there is no test split: val is used as test"))
    note = "there is no test split: one is drawn from train"
    if "unlabeled" in listing.splits:
        raise UserError("there is no test split, and none can be drawn where a part is unlabeled: name the test videos too")
    return replace(listing, splits=None, notes=(*listing.notes, note))


def with_splits(listing: Listing, test_share: float, seed: int, usable: Sequence[bool] | None = None) -> Listing:
    """The listing with a drawn test split, unless it has one.

    Drawn over the ``usable`` videos, None: over all; the others are put into train, where nothing is learned from them.
    """
    if listing.splits is not None:
        return listing
    places = range(len(listing.uris)) if usable is None else [place for place, fine in enumerate(usable) if fine]
    of = listing.only(places)
    splits: list[Split] = ["train"] * len(listing.uris)
    for place, split in zip(places, draw_splits(of.ids or of.uris, of.labels, of.groups, test_share, seed), strict=True):
        splits[place] = split
    return replace(listing, splits=tuple(splits))


def recordings(names: Sequence[str], splits: Sequence[Split]) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Groups: a recording where several clips are of it, all on one side; and a note on those that official lists tear."""
    counts = Counter(names)
    sides: dict[str, set[Split]] = {}
    for name, split in zip(names, splits, strict=True):
        sides.setdefault(name, set()).add("train" if split == "unlabeled" else split)
    torn = {name for name, where in sides.items() if len(where) > 1}
    notes = (f"{len(torn)} recordings lie in two splits of the official lists, which are kept as they are",) if torn else ()
    return tuple(name if counts[name] > 1 and name not in torn else None for name in names), notes


def refuse(mistakes: Sequence[str], what: str) -> None:
    """Raises UserError with the first 20 mistakes and how many more there are, if there is one."""
    if mistakes:
        count = "1 line that" if len(mistakes) == 1 else f"{len(mistakes)} lines that"
        raise UserError(f"{what} has {count} cannot be used:", first_few(mistakes))


def some(rows: Sequence[object], what: str) -> None:
    """Raises UserError where lists are there and name no video."""
    if not rows:
        raise UserError(f"{what} names no videos: the lists are empty")


def agree(rows: Iterable[tuple[str, object, str]], what: str) -> None:
    """Raises UserError naming what is said twice in different ways; rows are (name, what is said of it, where)."""
    said: dict[str, tuple[object, str]] = {}
    torn = []
    for name, saying, place in rows:
        old, old_place = said.setdefault(name, (saying, place))
        if old != saying:
            torn.append(f"{name}: {_words(old)} in {old_place}, {_words(saying)} in {place}")
    if torn:
        raise UserError(f"{what} disagree:", first_few(torn))


def _words(saying: object) -> str:
    return " ".join(str(part) for part in saying if part is not None) if isinstance(saying, tuple) else str(saying)


def missing_note(root: str, splits: Sequence[str], found: Sequence[bool], what: str) -> tuple[str, ...]:
    """A note that counts files that are not there, by split. Raises UserError when none is."""
    lost = Counter(split for split, here in zip(splits, found, strict=True) if not here)
    if not lost:
        return ()
    if lost.total() == len(found):
        raise UserError(f"none of the {len(found)} files that {what} names lies below {root}; is this the right folder?")
    parts = ", ".join(f"{count} {split}" for split, count in sorted(lost.items()))
    return (f"{lost.total()} of {len(found)} files are missing below {root} ({parts}); they stay listed, and unused",)


def outside(label: str, classes: Mapping[str, str]) -> str:
    """Words for a label that is not in the class list."""
    keys = list(classes)
    known = f"{len(keys)} classes, {keys[0]} to {keys[-1]}"
    return f"class {label} is outside the class list ({known}); leave it empty where the class is unknown"
