"""Train and test, drawn by hashed order: class-balanced, and never through a group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pipeline.errors import UserError, first_few
from pipeline.manifest.schema import Split
from pipeline.manifest.seeded_order import round_half_up, seeded_order


def draw_splits(
    ids: Sequence[str], classes: Sequence[str | None], groups: Sequence[str | None], test_share: float, seed: int
) -> list[Split]:
    """``test_share`` of every class goes to test (rounded half up, at least one video where a class has two groups).

    Groups are taken whole, in hashed order, as long as they fit into what is left of every class they touch. Videos of
    unknown class stay in train unless their group is in test.
    """
    chosen = draw_part(ids, classes, groups, test_share, seed, "splits")
    splits: list[Split] = ["train"] * len(ids)
    for place in chosen:
        splits[place] = "test"
    return splits


def draw_part(
    ids: Sequence[str], classes: Sequence[str | None], groups: Sequence[str | None], share: float, seed: int, purpose: str
) -> list[int]:
    """Places of the videos that ``draw_splits`` sends to test; another purpose draws independently."""
    units = _units(ids, groups)
    names = sorted(units)
    order = [units[names[i]] for i in seeded_order(names, seed, purpose)]
    del units, names
    taken = _fill(order, classes, share)
    return sorted(place for unit in taken for place in order[unit])


def _units(ids: Sequence[str], groups: Sequence[str | None]) -> dict[str, tuple[int, ...]]:
    """What goes to one side as a whole: groups, and videos of none; places in ``ids`` by a name for the hash."""
    members: dict[str, list[int]] = defaultdict(list)
    units: dict[str, tuple[int, ...]] = {}
    for place, (name, group) in enumerate(zip(ids, groups, strict=True)):
        if group is None:
            units[f"video\0{name}"] = (place,)
        else:
            members[group].append(place)
    return units | {f"group\0{group}": tuple(places) for group, places in members.items()}


def _fill(order: Sequence[tuple[int, ...]], classes: Sequence[str | None], share: float) -> set[int]:
    """Units taken, by their place in the order."""
    totals = Counter(name for name in classes if name is not None)
    room = Counter({name: max(1, round_half_up(share * total)) for name, total in totals.items()})
    owners: dict[str, list[int]] = defaultdict(list)
    chosen: set[int] = set()
    for unit, places in enumerate(order):
        sizes = _sizes(places, classes)
        if sizes and all(count <= room[name] for name, count in sizes.items()):
            chosen.add(unit)
            room.subtract(sizes)
        for name in sizes:
            owners[name].append(unit)
    for name in sorted(totals):  # classes whose every group is larger than their share: the smallest one goes
        if len(owners[name]) > 1 and chosen.isdisjoint(owners[name]):
            chosen.add(min(owners[name], key=lambda unit: sum(_sizes(order[unit], classes).values())))
    for name in sorted(totals):  # until every class has a video left to learn from
        if all(unit in chosen for unit in owners[name]):
            chosen.discard(owners[name][-1])
    return chosen


def _sizes(places: Sequence[int], classes: Sequence[str | None]) -> dict[str, int]:
    """Videos of each class, unknown ones aside."""
    if len(places) == 1:  # the common case, a million times
        name = classes[places[0]]
        return {} if name is None else {name: 1}
    return dict(Counter(c for place in places if (c := classes[place]) is not None))


def check_groups(ids: Sequence[str], groups: Sequence[str | None], splits: Sequence[Split]) -> None:
    """Raises UserError naming every group with videos in more than one split; train and unlabeled are one here."""
    seen: dict[str, dict[Split, str]] = defaultdict(dict)
    for name, group, split in zip(ids, groups, splits, strict=True):
        if group is not None:
            seen[group].setdefault("train" if split == "unlabeled" else split, name)
    torn = [
        f"group {group}: " + ", ".join(f"{name} in {split}" for split, name in sorted(where.items()))
        for group, where in sorted(seen.items())
        if len(where) > 1
    ]
    if torn:
        raise UserError("groups must lie in one split, else the test is seen in training:", first_few(torn))
