"""Simulates a run of any size block by block, from the plan and the rates of storage, decoding, network and training.

The result says what saturates first and which knob changes that. The plan is the real one; workers, decoders and network links
are numbers.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from pipeline.clips.plan import BlockLayout, Plan
from pipeline.config.text import convert
from pipeline.errors import UserError

KNOBS = {
    "training": "more GPUs (scale.workers), or smaller clips (clip.frames, clip.size)",
    "decoding": "more cores (nodes with scale.decode_labels), or smaller copies (jobs.prepare --resize)",
    "storage": "smaller copies (jobs.prepare --resize)",
    "network": "data.decode_size, whose square counts",
    "starting blocks": "data.clips_per_block; object stores then hold larger blocks, so fewer decode tasks are better",
}
"""What raises each ceiling: the names are those of ``Site.compute_ceilings``."""


@dataclass(frozen=True)
class Site:
    """The data and the machines of a simulated run. The defaults are clips like those of Kinetics on nodes of eight GPUs."""

    videos: int = 100_000_000
    """The number of training videos."""
    labeled: int = 1_000_000
    """The number of those that have a label."""
    workers: int = 256
    """The number of train workers, each of which has one GPU."""
    decoders: int = 8192
    """The number of decode tasks at once, which is that of CPU cores for decoding."""
    rows_per_step: int = 512
    """The number of labeled videos in a step."""
    unlabeled_per_labeled: int = 5
    """The number of unlabeled videos for each labeled one."""
    frames: int = 16
    """The number of frames of both students' clips together."""
    decode_size: int = 256
    """The side of decoded frames in pixels."""
    clips_per_block: int = 24
    """The number of videos in a block at least."""
    blocks_ahead: int = 4
    """The number of blocks that may wait for each worker."""
    decode_seconds: float = 0.13
    """CPU seconds to decode a video; docs/decoding.md has measurements."""
    decode_spread: float = 0.8
    """The standard deviation of the logarithm of a video's decoding time; that of a block follows from it."""
    train_seconds: float = 0.30
    """Seconds that one worker needs for its share of a step."""
    video_megabytes: float = 1.0
    """Megabytes that are read from storage for a video."""
    storage_gigabytes: float = 40.0
    """Gigabytes per second that storage gives all readers together."""
    nodes: int = 32
    """The number of machines with GPUs, which get decoded clips over their network."""
    node_gigabytes: float = 10.0
    """Gigabytes per second that one such machine can receive."""
    blocks_per_second: float = 100.0
    """The number of blocks that the stream's executor, one thread of Ray Data for the whole run, can start in a second: a
    guess, not measured."""
    gpu_price: float = 2.5
    """The price of a GPU for an hour with its share of the machine, in any currency."""
    core_price: float = 0.04
    """The price of a CPU core for decoding for an hour, in the same currency."""

    @classmethod
    def parse(cls, words: list[str]) -> Site:
        """Parses ``name=value`` words; fields that are not named have their defaults. Raises UserError."""
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(cls)}
        values: dict[str, Any] = {}
        for word in words:
            name, equals, text = word.partition("=")
            if name not in kinds or not equals:
                raise UserError(f"'{word}': write name=value with one of {', '.join(kinds)}")
            try:
                values[name] = convert(text, kinds[name])
            except ValueError as error:
                raise UserError(f"'{word}': {text!r} is not a number of this kind: {error}") from None
        if any(value <= 0 for name, value in values.items() if name != "decode_spread"):
            raise UserError("all numbers of a site must be positive")
        site = cls(**values)
        if site.rows_per_step % site.workers or site.labeled >= site.videos:
            raise UserError("workers must divide rows_per_step, and some videos must be unlabeled")
        return site

    @property
    def slots(self) -> int:
        """The number of videos in a row of the plan."""
        return 1 + self.unlabeled_per_labeled

    @property
    def steps_per_block(self) -> int:
        """The number of a worker's steps in a block."""
        return -(-self.clips_per_block // (self.rows_per_step // self.workers * self.slots))

    @property
    def clips_of_block(self) -> int:
        """The number of videos in a block, which is always that of whole steps of a worker."""
        return self.steps_per_block * (self.rows_per_step // self.workers) * self.slots

    @property
    def price_per_hour(self) -> float:
        """The price of all GPUs and all cores for decoding for an hour."""
        return self.workers * self.gpu_price + self.decoders * self.core_price

    @property
    def clip_bytes(self) -> int:
        """The bytes of both students' clips of one video."""
        return self.frames * self.decode_size**2 * 3

    def compute_ceilings(self) -> dict[str, float]:
        """Computes how many videos per second each part could do alone."""
        return {
            "training": self.rows_per_step * self.slots / self.train_seconds,
            "decoding": self.decoders / self.decode_seconds,
            "storage": self.storage_gigabytes * 1e9 / (self.video_megabytes * 1e6),
            "network": self.nodes * self.node_gigabytes * 1e9 / self.clip_bytes,
            "starting blocks": self.blocks_per_second * self.clips_of_block,
        }


def simulate(site: Site, steps: int, seed: int = 0) -> dict[str, Any]:
    """Simulates ``steps`` steps of a run.

    Blocks are started one after the other, each when a decoder is free and no more than ``blocks_ahead`` per worker wait. They
    take a random time, arrive in order, and are trained by all workers together. The keys of the result name their units.
    """
    ceilings = site.compute_ceilings()
    slowest = min(ceilings, key=lambda name: ceilings[name])
    rate, waited, held = _simulate_blocks(site, steps, seed)
    hours_per_epoch = (site.videos - site.labeled) / (rate * (1 - 1 / site.slots)) / 3600
    return {
        "site": asdict(site),
        "ceilings_videos_per_second": {name: round(value, 1) for name, value in ceilings.items()},
        "saturates_first": slowest,
        "raised_by": KNOBS[slowest],
        "videos_per_second": round(rate, 1),
        "of_ceiling_ratio": round(rate / ceilings[slowest], 4),
        "n": 1,
        "data_wait_share": round(waited, 4),
        "store_gigabytes_at_most": round(max(held) * site.clip_bytes / 1e9, 1),
        "store_gigabytes_usually": round(float(np.median(held[len(held) // 4 :])) * site.clip_bytes / 1e9, 1),
        "gigabytes_per_second_into_a_node": round(rate * site.clip_bytes / 1e9 / site.nodes, 3),
        "hours_per_epoch": round(hours_per_epoch, 2),
        "price_per_day": round(24 * site.price_per_hour, 2),
        "price_per_epoch": round(hours_per_epoch * site.price_per_hour, 2),
        **_measure_plan(site),
    }


def _simulate_blocks(site: Site, steps: int, seed: int) -> tuple[float, float, list[int]]:
    """Simulates all blocks.

    Returns:
        Videos per second and the share of time in which training waited, both without the first quarter, and for every block
        how many videos are in object stores when it begins: those of blocks that are being decoded, wait, or are being trained.
    """
    layout = BlockLayout(0, steps, site.rows_per_step, site.workers, site.steps_per_block)
    rounds = layout.blocks // site.workers
    steps_of = np.diff([layout.find_first_step(turn) for turn in range(rounds + 1)])
    clips = np.repeat(steps_of * layout.share * site.slots, site.workers)  # of each block
    random = np.random.default_rng(seed)
    spread = np.sqrt(np.log1p(np.expm1(site.decode_spread**2) / clips))  # of the sum of a block's, taken as lognormal
    taken = random.lognormal(-(spread**2) / 2, spread, layout.blocks) * site.decode_seconds * clips
    ceilings = site.compute_ceilings()
    link = clips / min(ceilings["storage"], ceilings["network"])  # seconds that each occupies the slower of the two
    limit = site.blocks_ahead * site.workers
    free = [0.0] * min(site.decoders, layout.blocks)
    starts = np.zeros(layout.blocks)  # when a block begins to be decoded
    ready = np.zeros(layout.blocks)  # when a block and all before it have come
    ends, waits = np.zeros(rounds), np.zeros(rounds)
    sent = last = now = executor = 0.0
    trained = 0
    for block in range(layout.blocks):
        if (behind := (block - limit - len(free)) // site.workers) >= 0:  # what waits has no room until this round is trained
            while trained <= behind:
                now, waits[trained] = _train_round(site, ready, trained, now, steps_of[trained])
                ends[trained] = now
                trained += 1
        start = starts[block] = max(heapq.heappop(free), ends[behind] if behind >= 0 else 0.0, executor)
        executor = start + 1 / site.blocks_per_second
        heapq.heappush(free, start + taken[block])
        sent = max(sent + link[block], start + taken[block])
        last = ready[block] = max(last, sent)
    while trained < rounds:
        now, waits[trained] = _train_round(site, ready, trained, now, steps_of[trained])
        ends[trained] = now
        trained += 1
    gone = np.concatenate([[0], np.cumsum(clips)[site.workers - 1 :: site.workers]])  # after so many rounds
    held = np.cumsum(clips) - gone[np.searchsorted(ends, starts, side="right")]
    skip = rounds // 4
    rate = steps_of[skip + 1 :].sum() * site.rows_per_step * site.slots / (ends[-1] - ends[skip])
    return rate, float(waits[skip + 1 :].sum() / (ends[-1] - ends[skip])), held.tolist()


def _train_round(site: Site, ready: Any, number: int, now: float, steps: int) -> tuple[float, float]:
    """Returns when all workers have trained their blocks of a round, and how many seconds they waited for the last of these."""
    start = max(now, float(ready[(number + 1) * site.workers - 1]))
    return start + steps * site.train_seconds, start - now


def _measure_plan(site: Site) -> dict[str, float]:
    """Measures the real plan at this size: microseconds per video, and megabytes of its list of unlabeled videos."""
    pool = np.arange(site.labeled, site.videos)
    plan = Plan(np.arange(site.labeled), pool, site.unlabeled_per_labeled, site.rows_per_step, 0)
    rows = np.random.default_rng(0).integers(0, 10**9, 20_000)
    begun = time.perf_counter()
    videos = plan.choose_videos(rows)
    seconds = time.perf_counter() - begun
    return {"plan_microseconds_per_video": round(1e6 * seconds / videos.size, 2), "plan_megabytes": round(pool.nbytes / 1e6, 1)}
