"""Train and test, drawn by hashed order: class-balanced, and never through a group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.manifest.labels import round_half_up, seeded_order
from pipeline.manifest.schema import Split


def draw_splits(
    ids: Sequence[str], classes: Sequence[str | None], groups: Sequence[str | None], test_share: float, seed: int
) -> list[Split]:
    """``test_share`` of every class goes to test (rounded half up, at least one video where a class has two groups).

    Groups are taken whole, in hashed order, as long as they fit into what is left of every class they touch. Videos of
    unknown class stay in train unless their group is in test.
    """
    units: dict[str, list[int]] = defaultdict(list)
    for place, (name, group) in enumerate(zip(ids, groups, strict=True)):
        units[f"group\0{group}" if group is not None else f"video\0{name}"].append(place)
    sizes = {unit: Counter(c for place in places if (c := classes[place]) is not None) for unit, places in units.items()}
    names = sorted(units)
    order = [names[i] for i in seeded_order(names, seed, "splits")]
    test = _fill(order, sizes, Counter(c for c in classes if c is not None), test_share)
    splits: list[Split] = ["train"] * len(ids)
    for unit in test:
        for place in units[unit]:
            splits[place] = "test"
    return splits


def _fill(order: Sequence[str], sizes: dict[str, Counter[str]], totals: Counter[str], share: float) -> set[str]:
    room = Counter({name: max(1, round_half_up(share * total)) for name, total in totals.items()})
    chosen: set[str] = set()
    for unit in order:
        if sizes[unit] and all(count <= room[name] for name, count in sizes[unit].items()):
            chosen.add(unit)
            room.subtract(sizes[unit])
    for name in sorted(totals):  # classes whose every group is larger than their share: the smallest one goes
        owners = [unit for unit in order if name in sizes[unit]]
        if len(owners) > 1 and not chosen.intersection(owners):
            chosen.add(min(owners, key=lambda unit: sum(sizes[unit].values())))
    return _leave_train(chosen, order, sizes, totals)


def _leave_train(chosen: set[str], order: Sequence[str], sizes: dict[str, Counter[str]], totals: Counter[str]) -> set[str]:
    """Take units back until every class has a video left to learn from."""
    for name in sorted(totals):
        owners = [unit for unit in order if name in sizes[unit]]
        if all(unit in chosen for unit in owners):
            chosen.discard(owners[-1])
    return chosen


def check_groups(ids: Sequence[str], groups: Sequence[str | None], splits: Sequence[Split]) -> None:
    """Raises UserError naming every group with videos in more than one split."""
    seen: dict[str, dict[Split, str]] = defaultdict(dict)
    for name, group, split in zip(ids, groups, splits, strict=True):
        if group is not None:
            seen[group].setdefault(split, name)
    torn = [
        f"group {group}: " + ", ".join(f"{name} in {split}" for split, name in sorted(where.items()))
        for group, where in sorted(seen.items())
        if len(where) > 1
    ]
    if torn:
        more = [f"and {len(torn) - 20} more"] if len(torn) > 20 else []
        raise UserError("groups must lie in one split, else the test is seen in training:", torn[:20] + more)
