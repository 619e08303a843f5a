"""Groups: the videos of one recording or person, which must lie in one split so that no test is seen in training.

Data sets of the field name files by recording or person: ``v_Jump_g03_c02`` is the second clip of UCF-101's third recording.
Where a source gives no groups, they are guessed from such names. The user is told the guess with its evidence, and
``--group none`` switches it off.
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
from pipeline.prepare.sources.file_search import remove_video_suffix
from pipeline.video import image_sequence

AUTO, NONE = "auto", "none"
MIN_MATCHING_SHARE = 0.9
"""Share of the names that must match a pattern before it is taken for the data set's naming convention."""
SAMPLED_NAMES = 1000
"""Names, evenly spread, of which at least one must match before all are tried: that takes seconds for a million names."""


@dataclass(frozen=True)
class NamingConvention:
    """How a data set of the field names its files."""

    description: str
    """What a group is, and an example of a name."""
    pattern: re.Pattern[str]
    """Pattern that is searched in the name without suffix; what it captures names the group."""
    is_sure: bool = True
    """Whether a name that matches can hardly mean anything else. If not, more evidence is needed."""


NAMING_CONVENTIONS = {
    "ucf": NamingConvention("recordings as UCF-101 names them (v_Jump_g03_c02)", re.compile(r"^(.+_g\d+)_c\d+$")),
    "hmdb": NamingConvention(
        "recordings as HMDB51 names them (April_09_brush_hair_u_nm_np1_ba_goo_0)",
        re.compile(r"^(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+$"),
    ),
    "kinetics": NamingConvention(
        "YouTube videos as Kinetics names their clips (_dbcJuKJQNs_000040_000050)", re.compile(r"^([\w-]{11})_\d{6}_\d{6}$")
    ),
    "ntu": NamingConvention(
        "persons as NTU RGB+D names them (S001C001P001R001A001)", re.compile(r"^S\d{3}C\d{3}(P\d{3})R\d{3}A\d{3}")
    ),
    "subject": NamingConvention(
        "persons (s01, a1_s1_t1, person01_boxing)",
        re.compile(r"(?:^|[_.\- ])((?:s|subj|subject|person|actor)[_-]?\d{1,3})(?=$|[_.\- ])", re.IGNORECASE),
        is_sure=False,
    ),
}
"""The naming conventions that ``--group`` knows by name, in the order in which they are guessed."""


def check_group_option(option: str) -> None:
    """Raises UserError for a value of ``--group`` that is neither a known name nor a regular expression."""
    if option not in (AUTO, NONE, *NAMING_CONVENTIONS):
        try:
            re.compile(option)
        except re.error as error:
            known = ", ".join((*NAMING_CONVENTIONS, NONE))
            raise UserError(f"--group {option!r} is none of {known}, and no regular expression: {error}") from None


def assign_groups(listing: Listing, option: str = AUTO) -> Listing:
    """Returns the listing with groups that follow from the names of its files, and a note that says so.

    Parts of one file are always a group, and so is a video in two formats.

    ``option`` is ``auto``, ``none``, a key of ``NAMING_CONVENTIONS``, or a regular expression that is searched in the path
    without suffix: what it captures, or all that it matches, names the group. Raises UserError where it matches nothing, where
    the source has groups of its own, and where such a group lies in two splits.
    """
    if option == AUTO:
        listing = _guess_groups(listing) if not any(listing.groups) else listing
    elif option != NONE:
        listing = _group_by_option(listing, option)
    return _group_parts_and_formats(listing)


def join_groups(groups: Sequence[str | None], keys: Sequence[Hashable | None], kind: str) -> tuple[str | None, ...]:
    """Joins the groups of videos that have the same key, transitively.

    Where no video of a key has a group yet, ``kind`` and the key name the new one.
    """
    counts = Counter(keys)
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys) if len(counts) < len(keys) else ():
        if key is not None and counts[key] > 1:
            members.setdefault(key, []).append(index)
    if not members:
        return tuple(groups)
    leader: dict[str, str] = {}

    def find_leader(name: str) -> str:
        while name in leader:
            name = leader[name]
        return name

    joined = list(groups)
    for key, indices in members.items():
        names = sorted({find_leader(group) for index in indices if (group := joined[index]) is not None})
        first = names[0] if names else f"{kind} {key}"
        leader |= dict.fromkeys(names[1:], first)
        for index in indices:
            joined[index] = first
    return tuple(find_leader(group) if group is not None else None for group in joined)


def _group_by_option(listing: Listing, option: str) -> Listing:
    if any(listing.groups):
        raise UserError(f"--group {option} cannot be used where the list has groups of its own: leave one of them out")
    if option in NAMING_CONVENTIONS:
        groups = _match_convention(_paths_without_suffix(listing), NAMING_CONVENTIONS[option])
    else:
        groups = _match_pattern(listing, re.compile(option))
    unmatched = [uri for uri, group in zip(listing.uris, groups, strict=True) if group is None]
    if len(unmatched) == len(groups):
        raise UserError(f"--group {option} fits none of the {len(groups)} names, the first is {unmatched[0]}")
    if listing.splits is not None:
        check_groups(listing.ids or listing.uris, groups, listing.splits)
    notes = [f"--group {option}: {_describe_evidence(groups)}"]
    if unmatched:
        notes.append(f"--group {option} does not fit {len(unmatched)} names, which are groups of their own: {unmatched[0]}")
    return replace(listing, groups=groups, notes=(*listing.notes, *notes))


def _guess_groups(listing: Listing) -> Listing:
    """The listing with the groups that its names show, where the evidence is good; with only a note where it is half good."""
    paths = _paths_without_suffix(listing)
    for key, convention in NAMING_CONVENTIONS.items():
        if not any(_match_convention(paths[:: max(1, len(paths) // SAMPLED_NAMES)], convention)):
            continue
        groups = _match_convention(paths, convention)
        sizes = Counter(group for group in groups if group is not None)
        if len(sizes) < 2 or max(sizes.values()) < 2:
            continue
        persons = "no" if convention.is_sure else _are_persons(groups, listing.labels)
        if sizes.total() >= MIN_MATCHING_SHARE * len(groups) and (convention.is_sure or persons == "yes"):
            return _apply_guess(listing, key, groups)
        if convention.is_sure or persons == "perhaps":
            count = f"{sizes.total()} of {len(groups)} names look like {convention.description}"
            return replace(listing, notes=(*listing.notes, f"{count}; --group {key} would keep each in one split"))
    return listing


def _apply_guess(listing: Listing, key: str, groups: Sequence[str | None]) -> Listing:
    evidence = f"the names look like {NAMING_CONVENTIONS[key].description}: {_describe_evidence(groups)}"
    if listing.splits is None:
        note = f"{evidence}; each goes to train or test as a whole (--group none: by video)"
        return replace(listing, groups=tuple(groups), notes=(*listing.notes, note))
    applied, straddling = _drop_straddling(groups, listing.groups, listing.splits)
    warning = f"; {straddling} of them lie in two splits, so that tests are seen in training" if straddling else ""
    return replace(listing, groups=applied, notes=(*listing.notes, evidence + warning))


def _drop_straddling(
    groups: Sequence[str | None], otherwise: Sequence[str | None], splits: Sequence[Split]
) -> tuple[tuple[str | None, ...], int]:
    """Replaces each group that lies on both sides of a split by the video's group in ``otherwise``; returns how many do."""
    sides: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        if group is not None:
            sides.setdefault(group, set()).add("train" if split == "unlabeled" else split)
    straddling = {group for group, splits_of_group in sides.items() if len(splits_of_group) > 1}
    remaining = tuple(old if new in straddling else new for old, new in zip(otherwise, groups, strict=True))
    return remaining, len(straddling)


def _match_convention(paths: Sequence[str], convention: NamingConvention) -> tuple[str | None, ...]:
    """The group of each name. A person is also looked for in the names of the folders, the nearest one first."""
    groups: list[str | None] = []
    for path in paths:
        *folders, name = path.split("/")
        match = convention.pattern.search(name)
        for folder in () if match or convention.is_sure else reversed(folders):
            match = match or convention.pattern.search(folder)
        groups.append(match[1].lower() if match and not convention.is_sure else match[1] if match else None)
    return tuple(groups)


def _match_pattern(listing: Listing, pattern: re.Pattern[str]) -> tuple[str | None, ...]:
    matches = map(pattern.search, _paths_without_suffix(listing))
    return tuple(("_".join(part or "" for part in m.groups()) or m[0]) if m else None for m in matches)


def _paths_without_suffix(listing: Listing) -> list[str]:
    """The paths of files without suffix, or of frame folders."""
    if listing.frame_rate is not None:
        return [uri.rpartition("/")[0] if image_sequence.is_pattern(uri) else uri for uri in listing.uris]
    parts = (uri.rpartition("/") for uri in listing.uris)
    return [f"{folder}{slash}{remove_video_suffix(name)}" for folder, slash, name in parts]


def _are_persons(groups: Sequence[str | None], labels: Sequence[str | None]) -> Literal["yes", "perhaps", "no"]:
    """Whether groups are persons: most persons do several actions, as scenes and numbered parts seldom do.

    Groups named ``s1``, ``s2``, most of which do each action once, are only perhaps persons: the videos of each class may be
    numbered in this way, too.
    """
    videos = Counter((group, label) for group, label in zip(groups, labels, strict=True) if group is not None)
    actions = Counter(group for group, _ in videos)
    if 2 * sum(count > 1 for count in actions.values()) <= len(actions):
        return "no"
    has_words = all(re.fullmatch(r"s[_-]?\d+", group or "") is None for group in actions)
    return "yes" if has_words or 2 * sum(count > 1 for count in videos.values()) > len(videos) else "perhaps"


def _describe_evidence(groups: Sequence[str | None]) -> str:
    sizes = Counter(group for group in groups if group is not None)
    (name, size), *_ = sizes.most_common(1)
    return f"{sizes.total()} of {len(groups)} names in {len(sizes)} groups, the largest is {name} with {size} videos"


def _group_parts_and_formats(listing: Listing) -> Listing:
    """Group the parts of each file, and the formats of each video (``x.avi``, ``x.mp4``), unless the source separates them."""
    paths = _paths_without_suffix(listing)
    if len(set(paths)) == len(paths):
        return listing
    groups = join_groups(listing.groups, paths, "file")
    if listing.splits is None:
        return replace(listing, groups=groups)
    applied, straddling = _drop_straddling(groups, listing.groups, listing.splits)
    count = f"{straddling} files have parts, or the same name in another format, in two splits"
    notes = (f"{count}, which are kept as they are listed",) if straddling else ()
    return replace(listing, groups=applied, notes=(*listing.notes, *notes))
