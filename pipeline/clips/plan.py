"""The plan: which videos at which optimizer step. Pure index arithmetic on a seed, nothing stored.

Run row i is one bundle: 1 labeled and mu unlabeled videos. Step s of a global batch of R rows is rows s*R .. (s+1)*R - 1,
however many workers share them. The unlabeled stream is a chain of seeded permutations of the unlabeled list, one an
epoch, cut into mu at a time; the labeled stream likewise, cycled. So rows can be computed in any order, a checkpoint
needs to store the next row only, and there is no bubble between epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.seeds import Floats, Ints, hash64, permute, uniform


@dataclass(frozen=True)
class Plan:
    """Everything that rows depend on."""

    labeled: Ints
    """Manifest rows of labeled training videos. Without any, slot 0 of every row is -1: no video."""
    unlabeled: Ints
    """Manifest rows of unlabeled training videos; may be empty if ``unlabeled_per_labeled`` is 0."""
    unlabeled_per_labeled: int
    """mu."""
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
        """S = 1 + mu."""
        return 1 + self.unlabeled_per_labeled

    @property
    def sizes(self) -> tuple[int, int]:
        """One more than the largest manifest row that is trained unlabeled, and the number of unlabeled videos."""
        return (int(self.unlabeled.max()) + 1, len(self.unlabeled)) if len(self.unlabeled) else (0, 0)

    def videos(self, rows: npt.ArrayLike) -> Ints:
        """[B] run rows -> [B, S] manifest rows; slot 0 is labeled, or -1 if nothing is."""
        rows = np.asarray(rows, dtype=np.int64)
        labeled = np.full((len(rows), 1), -1)
        if len(self.labeled):
            labeled = _cycle(self.labeled, rows[:, None], self.seed, "labeled")
        if not self.unlabeled_per_labeled:
            return labeled
        positions = rows[:, None] * self.unlabeled_per_labeled + np.arange(self.unlabeled_per_labeled)
        return np.concatenate([labeled, _cycle(self.unlabeled, positions, self.seed, "unlabeled")], axis=1)

    def moments(self, rows: npt.ArrayLike) -> Floats:
        """[B] run rows -> [B, S, 3] in [0, 1): where in time the clips lie, the decoded window on the longer side, and where
        in time the auxiliary's clip lies if it has a moment of its own."""
        rows = np.asarray(rows, dtype=np.int64)[:, None, None]
        return uniform(self.seed, "moment", rows, np.arange(self.slots)[:, None], np.arange(3))

    def segment_moments(self, rows: npt.ArrayLike, student: int, frames: int) -> Floats:
        """[B] run rows -> [B, S, T] in [0, 1): of a student (0 primary, 1 auxiliary) whose clips are segments, where each of T
        frames lies within its part of the video. Every number is drawn for itself."""
        rows = np.asarray(rows, dtype=np.int64)[:, None, None]
        return uniform(self.seed, "segment", rows, np.arange(self.slots)[:, None], student, np.arange(frames))

    def substitute(self, row: int, slot: int, attempt: int) -> int:
        """Manifest row of the ``attempt``-th candidate (1, 2, ...) for a slot whose video failed to decode."""
        pool = self.labeled if slot == 0 else self.unlabeled
        return int(pool[int(hash64(self.seed, "substitute", row, slot, attempt) % np.uint64(len(pool)))])

    def epoch(self, row: int) -> float:
        """Passes over the unlabeled list (the labeled one if mu is 0) before this row."""
        mu = self.unlabeled_per_labeled
        return row * mu / len(self.unlabeled) if mu else row / len(self.labeled)


def _cycle(pool: Ints, positions: Ints, seed: int, name: str) -> Ints:
    """Item at each position of an endless chain of permutations of ``pool``."""
    epochs, places = np.divmod(positions, len(pool))
    return np.asarray(pool[permute(places, len(pool), seed, name, epochs)])


@dataclass(frozen=True)
class Deal:
    """How the rows of steps ``first_step`` .. ``last_step`` - 1 are cut into blocks, by arithmetic: nothing is listed.

    Block n goes to worker n mod ``workers`` and holds that worker's share of some consecutive steps, so every worker meets its
    rows of step s at its s-th batch. Each worker's first block holds one step, because training waits for it; each one after it
    twice as many, until they hold ``steps_per_block``. Only the last blocks may hold fewer, those of all workers alike.
    """

    first_step: int
    last_step: int
    rows_per_step: int
    workers: int
    steps_per_block: int

    @property
    def share(self) -> int:
        """Places of one worker in a step: the largest worker's rows."""
        return largest_share(self.rows_per_step, self.workers)

    @property
    def doublings(self) -> int:
        """Blocks of each worker that hold fewer steps than ``steps_per_block`` because they are its first."""
        return (self.steps_per_block - 1).bit_length()

    @property
    def blocks(self) -> int:
        """Their number, a multiple of the workers'."""
        steps, few = max(0, self.last_step - self.first_step), (1 << self.doublings) - 1
        rounds = steps.bit_length() if steps <= few else self.doublings - (few - steps) // self.steps_per_block
        return self.workers * rounds

    def start(self, turn: int) -> int:
        """First step of each worker's ``turn``-th block, 0 being its first one."""
        doubled = min(turn, self.doublings)
        return min(self.first_step + (1 << doubled) - 1 + (turn - doubled) * self.steps_per_block, self.last_step)

    def starts(self, steps: int) -> list[int]:
        """Which of each worker's first ``steps`` batches are the first of a block."""
        turns = takewhile(lambda turn: self.start(turn) < self.first_step + steps, range(self.blocks // self.workers))
        return [self.start(turn) - self.first_step for turn in turns]

    def rows(self, block: int) -> Ints:
        """[steps, share]: run rows of a block; where the workers do not divide the rows, -1 stands for the row that a smaller
        share lacks, so that all workers' blocks are equally long."""
        turn, worker = divmod(block, self.workers)
        rows = worker_rows(np.arange(self.start(turn), self.start(turn + 1)), self.rows_per_step, worker, self.workers)
        return np.pad(rows, ((0, 0), (0, self.share - rows.shape[1])), constant_values=-1)


def worker_rows(steps: npt.ArrayLike, rows_per_step: int, worker: int, workers: int) -> Ints:
    """[steps] -> [steps, share]: the run rows that one worker trains at each step."""
    counts = shares(rows_per_step, workers)
    starts = np.asarray(steps, dtype=np.int64)[:, None] * rows_per_step + sum(counts[:worker])
    return np.asarray(starts + np.arange(counts[worker]))


def shares(rows_per_step: int, workers: int) -> list[int]:
    """Rows of a step for each worker: equal, or the first ones have one more. Any number of workers up to the rows will do."""
    assert 1 <= workers <= rows_per_step
    return [rows_per_step // workers + (worker < rows_per_step % workers) for worker in range(workers)]


def largest_share(rows_per_step: int, workers: int) -> int:
    """Rows of a step that the first worker has; the others have as many or one less."""
    return shares(rows_per_step, workers)[0]
