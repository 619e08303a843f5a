"""Drawn test splits are balanced, have each group on one side, and are the same on every machine."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.manifest.schema import Split
from pipeline.manifest.splits import check_groups, draw_splits
from pipeline.prepare.build import join_groups_of_copies
from pipeline.video.probe import Probe

VIDEOS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 11)), min_size=1, max_size=80)


def unpack(videos: list[tuple[str, int]], grouped: bool) -> tuple[list[str], list[str], list[str | None]]:
    ids = [f"{name}/{number:03d}" for number, (name, _) in enumerate(videos)]
    return ids, [name for name, _ in videos], [f"g{group}" if grouped else None for _, group in videos]


@given(VIDEOS, st.floats(0.05, 0.6), st.integers(0, 999))
def test_share_of_every_class_without_groups(videos: list[tuple[str, int]], share: float, seed: int) -> None:
    ids, classes, groups = unpack(videos, grouped=False)
    splits = draw_splits(ids, classes, groups, share, seed)
    for name in set(classes):
        count = classes.count(name)
        test = sum(1 for c, split in zip(classes, splits, strict=True) if c == name and split == "test")
        assert test == (min(max(1, int(share * count + 0.5)), count - 1))


@given(VIDEOS, st.integers(0, 999))
def test_groups_lie_in_one_split_and_train_keeps_every_class(videos: list[tuple[str, int]], seed: int) -> None:
    ids, classes, groups = unpack(videos, grouped=True)
    splits = draw_splits(ids, classes, groups, 0.25, seed)
    check_groups(ids, groups, splits)
    assert {c for c, split in zip(classes, splits, strict=True) if split == "train"} == set(classes)


@given(st.integers(0, 999))
def test_many_small_groups_reach_the_share(seed: int) -> None:
    videos = [("abc"[i % 3], i // 6) for i in range(120)]  # 20 groups, each with 2 videos of every class
    splits = draw_splits(*unpack(videos, grouped=True), 0.25, seed)
    assert Counter(splits) == {"train": 90, "test": 30}


@given(VIDEOS, st.data(), st.booleans())
def test_order_does_not_matter(videos: list[tuple[str, int]], data: st.DataObject, grouped: bool) -> None:
    columns = list(zip(*unpack(videos, grouped), strict=True))
    shuffled = data.draw(st.permutations(columns))

    def by_id(rows: list[tuple[str, str, str | None]]) -> dict[str, Split]:
        ids, classes, groups = zip(*rows, strict=True)
        return dict(zip(ids, draw_splits(ids, classes, groups, 0.3, 1), strict=True))

    assert by_id(columns) == by_id(shuffled)


def test_videos_of_unknown_class_stay_in_train() -> None:
    splits = draw_splits(["a0", "a1", "u0", "u1"], ["a", "a", None, None], [None] * 4, 0.5, 0)
    assert splits[2:] == ["train", "train"] and sorted(splits[:2]) == ["test", "train"]


def test_copies_of_a_video_join_their_groups() -> None:
    hashes = ["x", "x", "y", "z", "z", None, None, "w", "w"]
    probes = [Probe(hash=digest) for digest in hashes]
    groups = ["g1", "g2", "g2", None, None, "g1", None, None, "g3"]
    assert join_groups_of_copies(groups, probes) == ("g1", "g1", "g1", "content z", "content z", "g1", None, "g3", "g3")
    chain = join_groups_of_copies(["a", "b", "b", "c"], [Probe(hash=digest) for digest in ("1", "1", "2", "2")])
    assert chain == ("a", "a", "a", "a")


def test_groups_in_two_splits_are_named() -> None:
    splits: list[Split] = ["train", "test", "train", "test"]
    check_groups(["a", "b", "c", "d"], ["g1", "g2", "g1", None], splits)
    with pytest.raises(UserError, match="group g7: b in test, a in train"):
        check_groups(["a", "b", "c", "d"], ["g7", "g7", "g1", None], splits)
