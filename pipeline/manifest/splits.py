"""Drawing the train and test split: class-balanced, the same on every machine, and with each group on one side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pipeline.errors import UserError, list_first
from pipeline.manifest.schema import Split
from pipeline.manifest.seeded_order import order_by_hash, round_half_up


def draw_splits(
    ids: Sequence[str], classes: Sequence[str | None], groups: Sequence[str | None], test_share: float, seed: int
) -> list[Split]:
    """Draws the split of each video: ``test_share`` of every class becomes test, the rest train.

    The share is rounded half up, and is at least one video where a class has two groups. Groups stay together: in hashed
    order, each becomes test if all of its classes still lack that many test videos. Videos of unknown class become train
    unless their group becomes test.
    """
    test = draw_share(ids, classes, groups, test_share, seed, "splits")
    splits: list[Split] = ["train"] * len(ids)
    for index in test:
        splits[index] = "test"
    return splits


def draw_share(
    ids: Sequence[str], classes: Sequence[str | None], groups: Sequence[str | None], share: float, seed: int, purpose: str
) -> list[int]:
    """Draws a share of every class as ``draw_splits`` draws test; returns indices. Each purpose is drawn independently."""
    units = _make_units(ids, groups)
    names = sorted(units)
    order = [units[names[i]] for i in order_by_hash(names, seed, purpose)]
    del units, names
    drawn = _choose_units(order, classes, share)
    return sorted(index for unit in drawn for index in order[unit])


def _make_units(ids: Sequence[str], groups: Sequence[str | None]) -> dict[str, tuple[int, ...]]:
    """What is drawn or left as a whole: groups, and videos without a group. Indices into ``ids`` by a name to be hashed."""
    members: dict[str, list[int]] = defaultdict(list)
    units: dict[str, tuple[int, ...]] = {}
    for index, (name, group) in enumerate(zip(ids, groups, strict=True)):
        if group is None:
            units[f"video\0{name}"] = (index,)
        else:
            members[group].append(index)
    return units | {f"group\0{group}": tuple(indices) for group, indices in members.items()}


def _choose_units(order: Sequence[tuple[int, ...]], classes: Sequence[str | None], share: float) -> set[int]:
    """The units that are drawn, as indices into ``order``."""
    totals = Counter(name for name in classes if name is not None)
    remaining = Counter({name: max(1, round_half_up(share * total)) for name, total in totals.items()})
    units_of_class: dict[str, list[int]] = defaultdict(list)
    chosen: set[int] = set()
    for unit, indices in enumerate(order):
        sizes = _count_classes(indices, classes)
        if sizes and all(count <= remaining[name] for name, count in sizes.items()):
            chosen.add(unit)
            remaining.subtract(sizes)
        for name in sizes:
            units_of_class[name].append(unit)
    for name in sorted(totals):  # classes in which every group is larger than the share: the smallest group is drawn
        units = units_of_class[name]
        if len(units) > 1 and chosen.isdisjoint(units):
            chosen.add(min(units, key=lambda unit: sum(_count_classes(order[unit], classes).values())))
    for name in sorted(totals):  # every class keeps a video that is not drawn
        if all(unit in chosen for unit in units_of_class[name]):
            chosen.discard(units_of_class[name][-1])
    return chosen


def _count_classes(indices: Sequence[int], classes: Sequence[str | None]) -> dict[str, int]:
    """The number of videos of each known class among these."""
    if len(indices) == 1:  # the common case, a million times
        name = classes[indices[0]]
        return {} if name is None else {name: 1}
    return dict(Counter(name for index in indices if (name := classes[index]) is not None))


def check_groups(ids: Sequence[str], groups: Sequence[str | None], splits: Sequence[Split]) -> None:
    """Raises UserError that names every group with videos in more than one split; train and unlabeled count as one split."""
    examples: dict[str, dict[Split, str]] = defaultdict(dict)
    for name, group, split in zip(ids, groups, splits, strict=True):
        if group is not None:
            examples[group].setdefault("train" if split == "unlabeled" else split, name)
    straddling = [
        f"group {group}: " + ", ".join(f"{name} in {split}" for split, name in sorted(names.items()))
        for group, names in sorted(examples.items())
        if len(names) > 1
    ]
    if straddling:
        raise UserError("groups must lie in one split, else the test is seen in training:", list_first(straddling))
