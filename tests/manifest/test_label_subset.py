"""Label subsets are balanced, nested, and the same on every machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.manifest.label_subset import count_labels_per_class, draw_labels, read_labels, write_labels
from pipeline.manifest.schema import Manifest, compute_fingerprint, write_manifest
from pipeline.manifest.seeded_order import order_by_hash, parse_share
from tests.manifest.tables import BROKEN, GOOD, make_table

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(4, 30), min_size=2)


def in_memory(counts: dict[str, int], root: str = "/videos") -> Manifest:
    table = make_table(counts).sort_by("id")
    classes = tuple(sorted(counts))
    return Manifest(table, classes, root, "folder", compute_fingerprint(table, classes), "m.parquet")


@given(COUNTS, st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_n_per_class(counts: dict[str, int], wanted: int, seed: int) -> None:
    subset = draw_labels(in_memory(counts), f"{wanted}/class", seed)
    assert Counter(name.split("/")[0] for name in subset.ids) == dict.fromkeys(counts, wanted)
    assert (np.diff(subset.rows) > 0).all()


@given(COUNTS, st.integers(1, 100), st.integers(0, 2**31 - 1))
def test_share_of_every_class(counts: dict[str, int], percent: int, seed: int) -> None:
    subset = draw_labels(in_memory(counts), f"{percent}%", seed)
    labeled = Counter(name.split("/")[0] for name in subset.ids)
    for name, count in counts.items():
        assert labeled[name] == max(1, int(count * percent / 100 + 0.5))


@given(COUNTS, st.integers(1, 100), st.integers(1, 100), st.integers(0, 1000))
def test_smaller_subsets_are_contained_in_larger_ones(counts: dict[str, int], one: int, two: int, seed: int) -> None:
    small, large = (draw_labels(in_memory(counts), f"{percent}%", seed) for percent in sorted((one, two)))
    assert set(small.ids) <= set(large.ids)


@given(COUNTS, st.integers(0, 1000))
def test_a_subset_does_not_depend_on_the_root_or_the_order_of_rows(counts: dict[str, int], seed: int) -> None:
    here = draw_labels(in_memory(counts), "2/class", seed)
    reversed_counts = dict(reversed(counts.items()))
    there = draw_labels(in_memory(reversed_counts, "/elsewhere"), "2/class", seed)
    assert here.ids == there.ids and here.fingerprint == there.fingerprint


def test_seeds_give_different_subsets() -> None:
    manifest = in_memory({"a": 20, "b": 20})
    assert len({draw_labels(manifest, "4/class", seed).fingerprint for seed in range(10)}) == 10


def test_a_subset_is_the_same_on_every_platform() -> None:
    # written down once: a change here changes the label subset of every published run
    assert order_by_hash(["a/0.mp4", "a/1.mp4", "a/2.mp4", "b/0.mp4"], 0, "labels") == [3, 1, 0, 2]
    assert draw_labels(in_memory({"a": 9, "b": 9}), "2/class", 5).ids == ("a/5.mp4", "a/8.mp4", "b/2.mp4", "b/8.mp4")


@given(st.lists(st.text(), unique=True), st.data(), st.integers(0, 99))
def test_order_depends_on_ids_alone(ids: list[str], data: st.DataObject, seed: int) -> None:
    shuffled = data.draw(st.permutations(ids))
    assert [ids[i] for i in order_by_hash(ids, seed, "x")] == [shuffled[i] for i in order_by_hash(shuffled, seed, "x")]


def test_only_usable_train_videos_with_known_class(tmp_path: Path) -> None:
    probes = [GOOD, BROKEN, GOOD, GOOD, GOOD, GOOD]
    manifest = write_manifest(make_table({"a": 4, "b": 2}, probes=probes), tmp_path / "m", ("a", "b"), "/videos", "folder")
    assert draw_labels(manifest, "100%", 0).ids == ("a/0.mp4", "a/2.mp4", "a/3.mp4", "b/0.mp4", "b/1.mp4")


def test_the_error_names_every_class_with_too_few_videos() -> None:
    with pytest.raises(UserError) as caught:
        draw_labels(in_memory({"a": 3, "b": 9, "c": 2}), "4/class", 0)
    assert "class a has 3 usable train videos, 4 are needed" in str(caught.value)
    assert "class c has 2 usable train videos" in str(caught.value)
    assert "class b" not in str(caught.value) and "--labeled" in str(caught.value)


def test_videos_of_split_unlabeled_name_the_remedy(tmp_path: Path) -> None:
    """A class list names the class, so that the only mistake is that no label of it can be drawn."""
    table = pa.concat_tables([make_table({"a": 3}), make_table({"b": 2}, "unlabeled")])
    table = table.set_column(4, "label", pa.array([0] * 3 + [1] * 2, pa.int32()))
    manifest = write_manifest(table, tmp_path / "m.parquet", ("a", "b"), "/videos", "list")
    with pytest.raises(UserError, match="class b has 0 usable train videos, 1 are needed; 2 more are of split unlabeled"):
        draw_labels(manifest, "10%", 0)


def test_a_class_of_test_videos_alone_names_the_remedy(tmp_path: Path) -> None:
    """The usual cause is a misspelled label: "Jump" beside "jump"."""
    table = pa.concat_tables([make_table({"a": 3}), make_table({"b": 2}, "test")])
    table = table.set_column(4, "label", pa.array([0] * 3 + [1] * 2, pa.int32()))
    manifest = write_manifest(table, tmp_path / "m.parquet", ("a", "b"), "/videos", "list")
    what = "class b has 0 usable train videos, 1 are needed; 2 are of split test: correct their labels if they are another"
    with pytest.raises(UserError, match=f"{what} class's, or list some of them as train"):
        draw_labels(manifest, "10%", 0)


@pytest.mark.parametrize("spec", ["", "10", "0%", "101%", "-5%", "4", "0/class", "x/class", "4/video", "4/class/5", "ten%"])
def test_bad_specs(spec: str) -> None:
    with pytest.raises(UserError, match="--labeled"):
        count_labels_per_class(spec, 10)


def test_good_specs() -> None:
    counts = {"10%": 3, "0.1%": 1, "5 %": 2, "12.5%": 4, "100%": 30, "4/class": 4, "40 / class": 40}
    assert {spec: count_labels_per_class(spec, 30) for spec in counts} == counts
    assert parse_share("25%", "--test") == 0.25


def test_a_written_subset_can_be_read(tmp_path: Path) -> None:
    manifest = in_memory({"a": 9, "b": 9})
    subset = draw_labels(manifest, "20%", 3)
    write_labels(subset, manifest, tmp_path / "l.parquet")
    read = read_labels(tmp_path / "l.parquet", manifest)
    np.testing.assert_array_equal(read.rows, subset.rows)
    assert replace(read, rows=subset.rows, held_out=subset.held_out, excluded=subset.excluded) == subset
    assert read.manifest_fingerprint == manifest.fingerprint


def test_refuses_labels_of_another_manifest(tmp_path: Path) -> None:
    drawn_from = in_memory({"a": 9, "b": 9})
    write_labels(draw_labels(drawn_from, "20%", 3), drawn_from, tmp_path / "l.parquet")
    with pytest.raises(UserError, match="drawn from another manifest"):
        read_labels(tmp_path / "l.parquet", in_memory({"a": 9, "b": 8}))
    with pytest.raises(UserError, match=r"label subset not found.*jobs\.label"):
        read_labels(tmp_path / "none.parquet", in_memory({"a": 9, "b": 8}))


def test_refuses_a_manifest_as_labels(tmp_path: Path) -> None:
    manifest = write_manifest(make_table({"a": 4, "b": 4}), tmp_path / "m.parquet", ("a", "b"), "/videos", "folder")
    with pytest.raises(UserError, match="is not a label subset"):
        read_labels(tmp_path / "m.parquet", manifest)
