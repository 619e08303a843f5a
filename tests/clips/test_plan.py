from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clips.plan import BlockLayout, Plan, compute_largest_share, compute_worker_rows, divide_rows
from pipeline.errors import UserError


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    labeled, unlabeled = draw(st.integers(1, 40)), draw(st.integers(1, 200))
    videos = np.random.default_rng(draw(st.integers(0, 99))).permutation(1000)[: labeled + unlabeled]
    return Plan(
        videos[:labeled], videos[labeled:], draw(st.integers(0, 7)), draw(st.integers(1, 16)), draw(st.integers(0, 2**31 - 1))
    )


@given(plan=plans(), epoch=st.integers(0, 5))
def test_each_epoch_is_a_permutation_of_the_unlabeled_list(plan: Plan, epoch: int) -> None:
    size, mu = len(plan.unlabeled), plan.unlabeled_per_labeled
    if mu == 0:
        return
    rows = np.arange(epoch * size // mu, ((epoch + 1) * size - 1) // mu + 1)
    stream = plan.choose_videos(rows)[:, 1:].reshape(-1)
    begin = epoch * size - rows[0] * mu
    assert sorted(stream[begin : begin + size]) == sorted(plan.unlabeled)


@given(plan=plans(), epoch=st.integers(0, 5))
def test_labels_are_cycled_in_permutations(plan: Plan, epoch: int) -> None:
    size = len(plan.labeled)
    assert sorted(plan.choose_videos(np.arange(epoch * size, (epoch + 1) * size))[:, 0]) == sorted(plan.labeled)


@given(plan=plans(), row=st.integers(0, 10**9))
def test_ratio_and_pools(plan: Plan, row: int) -> None:
    videos = plan.choose_videos([row, row + 1])
    assert videos.shape == (2, 1 + plan.unlabeled_per_labeled)
    assert np.isin(videos[:, 0], plan.labeled).all()
    assert np.isin(videos[:, 1:], plan.unlabeled).all()


@given(plan=plans(), rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_row_does_not_depend_on_the_rows_around_it(plan: Plan, rows: list[int]) -> None:
    together, moments = plan.choose_videos(rows), plan.draw_moments(rows)
    for place, row in enumerate(rows):
        assert np.array_equal(plan.choose_videos([row])[0], together[place])
        assert np.array_equal(plan.draw_moments([row])[0], moments[place])
    assert moments.min() >= 0
    assert moments.max() < 1


@given(
    plan=plans(),
    first=st.integers(0, 30),
    steps=st.integers(1, 30),
    workers=st.integers(1, 4),
    block=st.integers(1, 9),
    more=st.integers(0, 7),
)
def test_dealt_blocks_give_each_worker_its_rows_in_order(
    plan: Plan, first: int, steps: int, workers: int, block: int, more: int
) -> None:
    rows_per_step = workers + more
    layout = BlockLayout(first, first + steps, rows_per_step, workers, block)
    blocks = [layout.list_rows(number).reshape(-1) for number in range(layout.blocks)]
    share = compute_largest_share(rows_per_step, workers)
    for turn in range(0, len(blocks), workers):
        assert len({len(block) for block in blocks[turn : turn + workers]}) == 1  # as streaming_split wants them
    for worker in range(workers):
        batches = np.concatenate(blocks[worker::workers]).reshape(steps, share)
        wanted = compute_worker_rows(np.arange(first, first + steps), rows_per_step, worker, workers)
        assert [batch[batch >= 0].tolist() for batch in batches] == wanted.tolist()
    dealt = np.concatenate(blocks)
    assert sorted(dealt[dealt >= 0]) == list(range(first * rows_per_step, (first + steps) * rows_per_step))


@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    workers=st.lists(st.integers(1, 12), min_size=7, max_size=7),
    blocks=st.lists(st.integers(1, 50), min_size=7, max_size=7),
)
def test_windows_join_without_seam_when_workers_change(cuts: list[int], workers: list[int], blocks: list[int]) -> None:
    """Stops and restarts at any step, with any number of workers and any block size, train the plan's rows, each once."""
    edges = sorted([0, 40, *cuts])
    rows: list[int] = []
    for first, last, count, block in zip(edges, edges[1:], workers, blocks, strict=False):
        layout = BlockLayout(first, last, 12, count, block)
        assert layout.blocks % count == 0
        rows += [int(row) for number in range(layout.blocks) for row in layout.list_rows(number).reshape(-1) if row >= 0]
        assert sorted(rows) == list(range(last * 12))


@given(steps=st.integers(0, 200), size=st.integers(1, 40), workers=st.integers(1, 3))
def test_the_first_block_is_one_step_and_the_next_ones_double(steps: int, size: int, workers: int) -> None:
    layout = BlockLayout(5, 5 + steps, 3, workers, size)
    sizes = [len(layout.list_rows(block)) for block in range(0, layout.blocks, workers)]
    assert sum(sizes) == steps and all(sizes)
    assert all(got == min(2**turn, size) for turn, got in enumerate(sizes[:-1]))
    assert layout.find_first_batches(steps) == [sum(sizes[:turn]) for turn in range(len(sizes))]
    assert layout.find_first_batches(min(steps, 1)) == [0][:steps]


def test_a_deal_of_millions_of_blocks_takes_no_memory() -> None:
    layout = BlockLayout(0, 10**9, 512, 256, 10)
    assert layout.blocks == 256 * (4 + 99_999_999)  # 1 + 2 + 4 + 8 steps, then tens
    assert layout.list_rows(layout.blocks - 1)[-1].tolist() == [10**9 * 512 - 2, 10**9 * 512 - 1]


@given(rows=st.integers(1, 64), workers=st.integers(1, 64))
def test_shares_differ_by_one_row_at_most(rows: int, workers: int) -> None:
    workers = min(workers, rows)
    counts = divide_rows(rows, workers)
    assert sum(counts) == rows and max(counts) - min(counts) <= 1 and min(counts) >= 1
    assert counts == sorted(counts, reverse=True)


def test_substitutes_come_from_the_same_pool_and_repeat() -> None:
    plan = Plan(np.arange(3), np.arange(10, 40), 2, 4, seed=1)
    assert all(plan.substitute(7, 0, attempt) in plan.labeled for attempt in range(1, 9))
    candidates = [plan.substitute(7, 1, attempt) for attempt in range(1, 17)]
    assert candidates == [plan.substitute(7, 1, attempt) for attempt in range(1, 17)]
    assert len(set(candidates)) > 8
    assert set(candidates) <= set(plan.unlabeled)


def test_empty_pools_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="--labeled"):
        Plan(np.array([], dtype=np.int64), np.arange(3), 0, 4, 0)
    with pytest.raises(UserError, match="unlabeled_per_labeled=0"):
        Plan(np.arange(3), np.array([], dtype=np.int64), 5, 4, 0)


def test_without_labels_rows_are_unlabeled_videos_only() -> None:
    plan, labeled = Plan(np.array([], dtype=np.int64), np.arange(20), 5, 4, 0), Plan(np.array([3]), np.arange(20), 5, 4, 0)
    assert (plan.choose_videos(np.arange(8))[:, 0] == -1).all()
    np.testing.assert_array_equal(plan.choose_videos(np.arange(8))[:, 1:], labeled.choose_videos(np.arange(8))[:, 1:])


def test_epochs() -> None:
    assert Plan(np.arange(4), np.arange(4, 24), 5, 8, 0).compute_epoch(8) == 2.0
    assert Plan(np.arange(4), np.arange(4, 24), 0, 8, 0).compute_epoch(8) == 2.0
