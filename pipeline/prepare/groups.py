"""Groups: videos of one recording or person, told by their names, so that no draw puts clips of it on two sides.

Names of the field's data sets say it: ``v_Jump_g03_c02`` is the second clip of UCF's third recording. Where a source gives no
groups, they are guessed from such names, the guess is told with its evidence, and ``--group none`` switches it off.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.manifest.splits import check_groups
from pipeline.prepare.sources import Listing
from pipeline.prepare.sources.file_search import video_stem
from pipeline.video import image_sequence

AUTO, NONE = "auto", "none"
SHARE = 0.9
"""Of the names that must fit a pattern before it is taken for the data set's."""
LOOKED_AT = 1000
"""Names, spread evenly, of which one at least must fit before all are looked at: that takes seconds for a million."""


@dataclass(frozen=True)
class Naming:
    """How a data set of the field names its files."""

    what: str
    """Of which the group is, in words."""
    pattern: re.Pattern[str]
    """Searched in the name without suffix; what it captures names the group."""
    is_sure: bool = True
    """Whether a name that fits can hardly mean anything else. If not, more evidence is needed."""


NAMINGS = {
    "ucf": Naming("recordings as UCF-101 names them (v_Jump_g03_c02)", re.compile(r"^(.+_g\d+)_c\d+$")),
    "hmdb": Naming(
        "recordings as HMDB51 names them (April_09_brush_hair_u_nm_np1_ba_goo_0)",
        re.compile(r"^(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+$"),
    ),
    "kinetics": Naming(
        "YouTube videos as Kinetics names their clips (_dbcJuKJQNs_000040_000050)", re.compile(r"^([\w-]{11})_\d{6}_\d{6}$")
    ),
    "ntu": Naming("persons as NTU RGB+D names them (S001C001P001R001A001)", re.compile(r"^S\d{3}C\d{3}(P\d{3})R\d{3}A\d{3}")),
    "subject": Naming(
        "persons (s01, a1_s1_t1, person01_boxing)",
        re.compile(r"(?:^|[_.\- ])((?:s|subj|subject|person|actor)[_-]?\d{1,3})(?=$|[_.\- ])", re.IGNORECASE),
        is_sure=False,
    ),
}
"""What ``--group`` knows by name, in the order in which it is guessed."""


def check_pattern(how: str) -> None:
    """Raises UserError for a ``--group`` that is neither a name nor a regular expression."""
    if how not in (AUTO, NONE, *NAMINGS):
        try:
            re.compile(how)
        except re.error as error:
            known = ", ".join((*NAMINGS, NONE))
            raise UserError(f"--group {how!r} is none of {known}, and no regular expression: {error}") from None


def with_groups(listing: Listing, how: str = AUTO) -> Listing:
    """The listing with groups from its names, and a note that says so.

    Parts of one file are always a group, and so is a video in two formats.

    ``how`` is ``auto``, ``none``, a key of ``NAMINGS``, or a regular expression that is searched in the path without suffix:
    what it captures, or all that it finds, names the group. Raises UserError where it finds nothing, where the source has
    groups of its own, and where such a group lies in two splits.
    """
    if how == AUTO:
        listing = _guessed(listing) if not any(listing.groups) else listing
    elif how != NONE:
        listing = _given(listing, how)
    return _with_parts_together(listing)


def join_groups(groups: Sequence[str | None], keys: Sequence[Hashable | None], kind: str) -> tuple[str | None, ...]:
    """Groups joined where videos have the same key; ``kind`` begins the name of one of which no video has a group yet."""
    counts = Counter(keys)
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys) if len(counts) < len(keys) else ():
        if key is not None and counts[key] > 1:
            places.setdefault(key, []).append(place)
    if not places:
        return tuple(groups)
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while name in leader:
            name = leader[name]
        return name

    joined = list(groups)
    for key, members in places.items():
        names = sorted({find(group) for place in members if (group := joined[place]) is not None})
        first = names[0] if names else f"{kind} {key}"
        leader |= dict.fromkeys(names[1:], first)
        for place in members:
            joined[place] = first
    return tuple(find(group) if group is not None else None for group in joined)


def _given(listing: Listing, how: str) -> Listing:
    if any(listing.groups):
        raise UserError(f"--group {how} cannot be used where the list has groups of its own: leave one of them out")
    groups = _named(_paths(listing), NAMINGS[how]) if how in NAMINGS else _searched(listing, re.compile(how))
    alone = [uri for uri, group in zip(listing.uris, groups, strict=True) if group is None]
    if len(alone) == len(groups):
        raise UserError(f"--group {how} fits none of the {len(groups)} names, the first is {alone[0]}")
    if listing.splits is not None:
        check_groups(listing.ids or listing.uris, groups, listing.splits)
    notes = [f"--group {how}: {_evidence(groups)}"]
    notes += [f"--group {how} does not fit {len(alone)} names, which are groups of their own: {alone[0]}"] if alone else []
    return replace(listing, groups=groups, notes=(*listing.notes, *notes))


def _guessed(listing: Listing) -> Listing:
    """With the groups that the names show, where the evidence is good; a note where it is half good."""
    paths = _paths(listing)
    for key, naming in NAMINGS.items():
        if not any(_named(paths[:: max(1, len(paths) // LOOKED_AT)], naming)):
            continue
        groups = _named(paths, naming)
        sizes = Counter(group for group in groups if group is not None)
        if len(sizes) < 2 or max(sizes.values()) < 2:
            continue
        persons = "no" if naming.is_sure else _are_persons(groups, listing.labels)
        if sizes.total() >= SHARE * len(groups) and (naming.is_sure or persons == "yes"):
            return _taken(listing, key, groups)
        if naming.is_sure or persons == "perhaps":
            note = f"{sizes.total()} of {len(groups)} names look like {naming.what}; --group {key} would keep each together"
            return replace(listing, notes=(*listing.notes, note))
    return listing


def _taken(listing: Listing, key: str, groups: Sequence[str | None]) -> Listing:
    evidence = f"the names look like {NAMINGS[key].what}: {_evidence(groups)}"
    if listing.splits is None:
        note = f"{evidence}; each goes to train or test as a whole (--group none: by video)"
        return replace(listing, groups=tuple(groups), notes=(*listing.notes, note))
    kept, torn = _whole(groups, listing.groups, listing.splits)
    note = f"{evidence}" + (f"; {torn} of them lie in two splits, so that tests are seen in training" if torn else "")
    return replace(listing, groups=kept, notes=(*listing.notes, note))


def _whole(
    groups: Sequence[str | None], otherwise: Sequence[str | None], splits: Sequence[Split]
) -> tuple[tuple[str | None, ...], int]:
    """The groups that lie on one side, what they would be ``otherwise`` in place of the others, and how many these are."""
    sides: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        if group is not None:
            sides.setdefault(group, set()).add("train" if split == "unlabeled" else split)
    torn = {group for group, where in sides.items() if len(where) > 1}
    return tuple(old if new in torn else new for old, new in zip(otherwise, groups, strict=True)), len(torn)


def _named(paths: Sequence[str], naming: Naming) -> tuple[str | None, ...]:
    """The group of each name; of persons also from the folder that is nearest to the file."""
    found: list[str | None] = []
    for path in paths:
        *folders, name = path.split("/")
        match = naming.pattern.search(name)
        for folder in () if match or naming.is_sure else reversed(folders):
            match = match or naming.pattern.search(folder)
        found.append(match[1].lower() if match and not naming.is_sure else match[1] if match else None)
    return tuple(found)


def _searched(listing: Listing, pattern: re.Pattern[str]) -> tuple[str | None, ...]:
    matches = map(pattern.search, _paths(listing))
    return tuple(("_".join(part or "" for part in m.groups()) or m[0]) if m else None for m in matches)


def _paths(listing: Listing) -> list[str]:
    """Without suffix; of a frame folder its own path."""
    if listing.frame_rate is not None:
        return [uri.rpartition("/")[0] if image_sequence.is_pattern(uri) else uri for uri in listing.uris]
    return [f"{folder}{slash}{video_stem(name)}" for folder, slash, name in (uri.rpartition("/") for uri in listing.uris)]


def _are_persons(groups: Sequence[str | None], labels: Sequence[str | None]) -> Literal["yes", "perhaps", "no"]:
    """Whether most of them do several actions, as scenes and parts with a number seldom do.

    Only perhaps, if they are ``s1``, ``s2`` and most do each action once: that also is how videos are numbered in each class.
    """
    videos = Counter((group, label) for group, label in zip(groups, labels, strict=True) if group is not None)
    actions = Counter(group for group, _ in videos)
    if 2 * sum(count > 1 for count in actions.values()) <= len(actions):
        return "no"
    is_word = all(re.fullmatch(r"s[_-]?\d+", group or "") is None for group in actions)
    return "yes" if is_word or 2 * sum(count > 1 for count in videos.values()) > len(videos) else "perhaps"


def _evidence(groups: Sequence[str | None]) -> str:
    sizes = Counter(group for group in groups if group is not None)
    (name, size), *_ = sizes.most_common(1)
    return f"{sizes.total()} of {len(groups)} names in {len(sizes)} groups, the largest is {name} with {size} videos"


def _with_parts_together(listing: Listing) -> Listing:
    """Parts of a file, and a video in several formats (``x.avi`` and ``x.mp4``), as a group, unless the source parts them."""
    paths = _paths(listing)
    if len(set(paths)) == len(paths):
        return listing
    groups = join_groups(listing.groups, paths, "file")
    if listing.splits is None:
        return replace(listing, groups=groups)
    kept, torn = _whole(groups, listing.groups, listing.splits)
    note = f"{torn} files have parts, or the same name in another format, in two splits, which are kept as they are listed"
    return replace(listing, groups=kept, notes=(*listing.notes, note) if torn else listing.notes)
