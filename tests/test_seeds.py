from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.seeds import draw_uniform, hash_to_uint64, permute


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**6))
def test_permute_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    places = permute(np.arange(size), size, seed, "unlabeled", epoch)
    assert np.array_equal(np.sort(places), np.arange(size))


def test_permute_without_a_table_at_ten_million() -> None:
    places = permute(np.arange(5_000_000, 5_010_000), 10_000_000, 3, "x", 0)
    assert len(np.unique(places)) == 10_000
    assert abs(places.mean() / 10_000_000 - 0.5) < 0.02


def test_permute_takes_an_epoch_for_each_index() -> None:
    index, epochs = np.tile(np.arange(7), 3), np.repeat([0, 1, 2], 7)
    together = permute(index, 7, 5, "x", epochs)
    apart = np.concatenate([permute(np.arange(7), 7, 5, "x", epoch) for epoch in range(3)])
    assert np.array_equal(together, apart)
    assert len({tuple(row) for row in apart.reshape(3, 7)}) == 3


def test_every_place_is_equally_likely() -> None:
    places = permute(np.zeros(6000, dtype=np.int64), 6, np.arange(6000))
    counts = np.bincount(places, minlength=6)
    assert counts.min() > 850, counts
    assert counts.max() < 1150, counts


def test_hash_does_not_change_between_versions() -> None:
    """Runs are continued by later versions: these numbers are part of the checkpoint format."""
    assert int(hash_to_uint64(0, "moment", 5, 2)) == 5779057627471377769
    assert permute(np.arange(10), 10, 0).tolist() == [1, 3, 4, 2, 6, 8, 9, 5, 7, 0]


def test_order_and_kind_of_parts_matter() -> None:
    values = [int(hash_to_uint64(*parts)) for parts in ((1, 2), (2, 1), (1,), (1, 2, 0), ("a", 1), ("b", 1), (0, 0), (0,))]
    assert len(set(values)) == len(values)


def test_uniform_is_uniform() -> None:
    values = draw_uniform(7, "moment", np.arange(20_000))
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert counts.min() > 880, counts
    assert counts.max() < 1120, counts
    assert values.min() >= 0
    assert values.max() < 1
