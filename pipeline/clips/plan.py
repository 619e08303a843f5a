"""The plan: which videos are trained on at which optimizer step. It is index arithmetic on a seed; nothing is stored.

A *run row* is a bundle of 1 labeled and mu unlabeled videos; each of these 1 + mu positions is a *slot*. With R rows in a
global batch, step s trains on the rows s*R .. (s+1)*R - 1, however many workers share them. The unlabeled videos come in a
new seeded permutation every epoch, mu at a time; so do the labeled ones. Rows can therefore be computed in any order, a
checkpoint needs to store only the number of the next row, and no batch is cut short at the end of an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.seeds import Floats, Ints, draw_uniform, hash_to_uint64, permute


@dataclass(frozen=True)
class Plan:
    """Computes the videos and the clip positions of any run row from these fields alone."""

    labeled: Ints
    """Manifest rows of labeled training videos. Without any, slot 0 of every row is -1: no video."""
    unlabeled: Ints
    """Manifest rows of unlabeled training videos; may be empty if ``unlabeled_per_labeled`` is 0."""
    unlabeled_per_labeled: int
    """mu, the number of unlabeled videos for each labeled one."""
    rows_per_step: int
    """R, the global batch in rows: data.labeled_per_step."""
    seed: int

    def __post_init__(self) -> None:
        if len(self.labeled) == 0 and self.unlabeled_per_labeled == 0:
            raise UserError("the label subset names no usable training video: draw one with jobs.prepare --labeled")
        if self.unlabeled_per_labeled and len(self.unlabeled) == 0:
            raise UserError(
                "no unlabeled training video is left beside the labeled ones: set data.unlabeled_per_labeled=0, "
                "method.name=supervised, or draw fewer labels"
            )

    @property
    def slots(self) -> int:
        """S = 1 + mu, the number of videos in a run row."""
        return 1 + self.unlabeled_per_labeled

    @property
    def sizes(self) -> tuple[int, int]:
        """Returns one more than the largest manifest row of an unlabeled video, and the number of unlabeled videos; both are 0
        if there are none."""
        return (int(self.unlabeled.max()) + 1, len(self.unlabeled)) if len(self.unlabeled) else (0, 0)

    def choose_videos(self, rows: npt.ArrayLike) -> Ints:
        """Maps [B] run rows to [B, S] manifest rows. Slot 0 is the labeled video, or -1 if no video is labeled."""
        rows = np.asarray(rows, dtype=np.int64)
        labeled = np.full((len(rows), 1), -1)
        if len(self.labeled):
            labeled = _pick_from_cycle(self.labeled, rows[:, None], self.seed, "labeled")
        if not self.unlabeled_per_labeled:
            return labeled
        positions = rows[:, None] * self.unlabeled_per_labeled + np.arange(self.unlabeled_per_labeled)
        return np.concatenate([labeled, _pick_from_cycle(self.unlabeled, positions, self.seed, "unlabeled")], axis=1)

    def draw_moments(self, rows: npt.ArrayLike) -> Floats:
        """Maps [B] run rows to [B, S, 3] numbers in [0, 1): where in time the clips lie, where on the frame's longer side the
        decoded square lies, and where in time the auxiliary's clip lies if it has a moment of its own."""
        rows = np.asarray(rows, dtype=np.int64)[:, None, None]
        return draw_uniform(self.seed, "moment", rows, np.arange(self.slots)[:, None], np.arange(3))

    def draw_segment_moments(self, rows: npt.ArrayLike, student: int, frames: int) -> Floats:
        """Maps [B] run rows to [B, S, T] numbers in [0, 1), for a student (0 primary, 1 auxiliary) whose clips are segments:
        where each of the T frames lies within its part of the video. The numbers are independent of each other."""
        rows = np.asarray(rows, dtype=np.int64)[:, None, None]
        return draw_uniform(self.seed, "segment", rows, np.arange(self.slots)[:, None], student, np.arange(frames))

    def substitute(self, row: int, slot: int, attempt: int) -> int:
        """Returns the manifest row of the ``attempt``-th replacement (1, 2, ...) for a slot whose video failed to decode."""
        pool = self.labeled if slot == 0 else self.unlabeled
        return int(pool[int(hash_to_uint64(self.seed, "substitute", row, slot, attempt) % np.uint64(len(pool)))])

    def compute_epoch(self, row: int) -> float:
        """Returns how many passes over the unlabeled videos (over the labeled ones if mu is 0) come before this row."""
        mu = self.unlabeled_per_labeled
        return row * mu / len(self.unlabeled) if mu else row / len(self.labeled)


def _pick_from_cycle(pool: Ints, positions: Ints, seed: int, name: str) -> Ints:
    """Returns the item at each position of an endless chain of permutations of ``pool``."""
    epochs, indices = np.divmod(positions, len(pool))
    return np.asarray(pool[permute(indices, len(pool), seed, name, epochs)])


@dataclass(frozen=True)
class BlockLayout:
    """How the rows of the steps ``first_step`` .. ``last_step`` - 1 are grouped into blocks, the units that are decoded.

    Block n goes to worker n mod ``workers`` and holds that worker's share of some consecutive steps, so each of a worker's
    batches is its part of one step, in the order of the steps. Each worker's first block holds one step, because training
    waits for it. Each block after it holds twice as many as the one before, up to ``steps_per_block``. Only the last blocks
    may hold fewer, and then those of all workers do. All of it is computed: no list of blocks exists.
    """

    first_step: int
    last_step: int
    rows_per_step: int
    workers: int
    steps_per_block: int

    @property
    def share(self) -> int:
        """The number of rows of a step in each worker's block, that of the worker which has most."""
        return compute_largest_share(self.rows_per_step, self.workers)

    @property
    def doublings(self) -> int:
        """The number of blocks at each worker's beginning that hold fewer than ``steps_per_block`` steps."""
        return (self.steps_per_block - 1).bit_length()

    @property
    def blocks(self) -> int:
        """The number of blocks, a multiple of the number of workers."""
        steps, few = max(0, self.last_step - self.first_step), (1 << self.doublings) - 1
        rounds = steps.bit_length() if steps <= few else self.doublings - (few - steps) // self.steps_per_block
        return self.workers * rounds

    def find_first_step(self, turn: int) -> int:
        """Returns the first step in each worker's block number ``turn``, counted from 0."""
        doubled = min(turn, self.doublings)
        return min(self.first_step + (1 << doubled) - 1 + (turn - doubled) * self.steps_per_block, self.last_step)

    def find_first_batches(self, steps: int) -> list[int]:
        """Returns which of each worker's first ``steps`` batches, counted from 0, are the first of a block."""
        turns = takewhile(lambda turn: self.find_first_step(turn) < self.first_step + steps, range(self.blocks // self.workers))
        return [self.find_first_step(turn) - self.first_step for turn in turns]

    def list_rows(self, block: int) -> Ints:
        """Returns the run rows of a block, [steps, share]. Where the rows of a step cannot be divided equally, the workers with
        one row less get -1 in its place, so that all workers' blocks are equally long."""
        turn, worker = divmod(block, self.workers)
        rows = compute_worker_rows(
            np.arange(self.find_first_step(turn), self.find_first_step(turn + 1)), self.rows_per_step, worker, self.workers
        )
        return np.pad(rows, ((0, 0), (0, self.share - rows.shape[1])), constant_values=-1)


def compute_worker_rows(steps: npt.ArrayLike, rows_per_step: int, worker: int, workers: int) -> Ints:
    """Maps [N] steps to [N, share] run rows: those that one worker trains on at each step."""
    counts = divide_rows(rows_per_step, workers)
    starts = np.asarray(steps, dtype=np.int64)[:, None] * rows_per_step + sum(counts[:worker])
    return np.asarray(starts + np.arange(counts[worker]))


def divide_rows(rows_per_step: int, workers: int) -> list[int]:
    """Returns how many rows of a step each worker has. Where they cannot be equal, the first workers have one more.

    ``workers`` must be from 1 to ``rows_per_step``.
    """
    assert 1 <= workers <= rows_per_step
    return [rows_per_step // workers + (worker < rows_per_step % workers) for worker in range(workers)]


def compute_largest_share(rows_per_step: int, workers: int) -> int:
    """Returns how many rows of a step the first worker has; the others have as many, or one less."""
    return divide_rows(rows_per_step, workers)[0]
