"""The simulation against what can be worked out by hand."""

from __future__ import annotations

import json

import pytest

from jobs import bench
from jobs.command import run
from pipeline.bench.simulate import KNOBS, Site, simulate
from pipeline.errors import UserError

SMALL = ["videos=100000", "labeled=1000", "workers=4", "rows_per_step=8", "nodes=1", "decoders=16", "decode_spread=0"]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["train_seconds=5"], "training"),
        (["decode_seconds=2", "train_seconds=0.1"], "decoding"),
        (["storage_gigabytes=0.01", "train_seconds=0.1"], "storage"),
        (["node_gigabytes=0.05", "train_seconds=0.1"], "network"),
        (["blocks_per_second=1", "train_seconds=0.1"], "starting blocks"),
    ],
)
def test_what_saturates_first_sets_the_rate(words: list[str], first: str) -> None:
    figures = simulate(Site.parse([*SMALL, *words]), 400)
    assert figures["saturates_first"] == first
    assert figures["of_ceiling_ratio"] == pytest.approx(1, abs=0.06)
    assert (figures["data_wait_share"] < 0.05) == (first == "training")
    assert figures["raised_by"] == KNOBS[first]


def test_larger_blocks_relieve_the_executor_that_starts_them() -> None:
    words = [*SMALL, "blocks_per_second=1", "train_seconds=0.1"]
    one, two = (simulate(Site.parse([*words, f"clips_per_block={clips}"]), 400)["videos_per_second"] for clips in (24, 48))
    assert (one, two) == (pytest.approx(24, rel=0.01), pytest.approx(48, rel=0.01))


def test_prices() -> None:
    """4 GPUs at 3 and 16 cores at 0.5 an hour; 9.6 videos/s, of which five of six are unlabeled, for 99,000 unlabeled ones."""
    figures = simulate(Site.parse([*SMALL, "train_seconds=5", "gpu_price=3", "core_price=0.5"]), 400)
    assert figures["price_per_day"] == 480
    assert figures["price_per_epoch"] == pytest.approx(99_000 / 8 / 3600 * 20, abs=0.01)


def test_waiting_blocks_are_bounded_by_the_knob() -> None:
    few, many = (simulate(Site.parse([*SMALL, "train_seconds=5", f"blocks_ahead={n}"]), 400) for n in (2, 8))
    block = 24 * few["site"]["frames"] * 256**2 * 3 / 1e9
    for figures, ahead in ((few, 2), (many, 8)):
        assert figures["store_gigabytes_at_most"] <= (ahead * 4 + 16) * block + 0.1
    assert few["store_gigabytes_at_most"] < many["store_gigabytes_at_most"]


def test_a_store_holds_what_has_come_and_not_what_could() -> None:
    """Where training waits for decoding nothing else does. And blocks hold whole steps, however many clips are asked for."""
    words = [*SMALL, "decoders=4", "decode_seconds=2", "train_seconds=0.1", "frames=1600", "node_gigabytes=1000"]
    block = 2 * 6 * 1600 * 256**2 * 3 / 1e9  # a worker's 2 rows of 6 videos: 3.8 GB, of which tenths are told
    starved = simulate(Site.parse([*words, "clips_per_block=12"]), 400)
    assert starved["store_gigabytes_at_most"] == pytest.approx(8 * block, abs=0.06)  # 4 under way and 4 in training; 20 may be
    assert starved["store_gigabytes_usually"] == pytest.approx(6.5 * block, abs=0.06)  # 5, 6, 7, 8 as each of 4 begins
    odd, even = (simulate(Site.parse([*SMALL, f"clips_per_block={number}"]), 400) for number in (13, 24))
    assert odd["store_gigabytes_at_most"] == even["store_gigabytes_at_most"]


def test_slow_videos_are_ridden_out_by_blocks_ahead() -> None:
    """Decoders for 1.3 of what training takes, and videos of very different length."""
    words = [*SMALL, "decoders=42", "decode_seconds=0.13", "train_seconds=0.2", "decode_spread=2"]
    few, many = (simulate(Site.parse([*words, f"blocks_ahead={n}"]), 800)["data_wait_share"] for n in (1, 32))
    assert many < few


def test_the_command_takes_numbers_of_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["simulate", "--json", "--steps", "50", *SMALL]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["site"]["workers"] == 4 and figures["hours_per_epoch"] > 0
    assert run(bench.main, ["simulate", "worker=4"]) == 2
    assert "write name=value with one of videos, labeled, workers" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["workers=x", "workers=0", "workers=3"])
def test_sites_that_cannot_be(word: str) -> None:
    with pytest.raises(UserError):
        Site.parse([word])
