"""Scores decoded videos of several requests together: whatever waits when the networks become free is one batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from pipeline.clips.source import Columns
from pipeline.evaluation.scorer import Block

ScoreBlocks = Callable[[Sequence[Block]], Iterable[Columns]]
"""Scores blocks, and yields columns of their views in order, in any parts, as ``Scorer.score_videos`` does."""


@dataclass(frozen=True)
class _Job:
    block: Block
    drop: Callable[[], None]
    future: Future[Columns] = field(default_factory=Future)


class ScoreBatches:
    """A thread that scores blocks, each of which holds one video.

    No request waits for others to come: a block that comes alone is scored alone, and those that come meanwhile are scored
    together afterward. So batches grow with the load.
    """

    def __init__(self, score: ScoreBlocks, crops: int, most: int, observe: Callable[[int], None] = lambda videos: None) -> None:
        """``most`` is how many videos are scored together at most; ``observe`` is called with how many were."""
        self.score, self.crops, self.most, self.observe = score, crops, most, observe
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="scores", daemon=True)
        self._thread.start()

    def submit(self, block: Block, drop: Callable[[], None] = lambda: None) -> Future[Columns]:
        """Hands in a block; the future has the columns of its views, or what scoring them raised.

        ``drop`` is called when the block is needed no more, also if the future was canceled meanwhile.
        """
        job = _Job(block, drop)
        self._waiting.put(job)
        return job.future

    def stop(self) -> None:
        """Ends the thread after what it is doing."""
        self._waiting.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while self._score_next():
            pass  # a call for each batch, so that no block is held while the next one is waited for

    def _score_next(self) -> bool:
        """Scores what waits, at most ``most`` blocks; returns False when the thread is to end."""
        first = self._waiting.get()
        if first is None:
            return False
        jobs = [first]
        while len(jobs) < self.most:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            jobs.append(job)
        try:
            if wanted := [job for job in jobs if job.future.set_running_or_notify_cancel()]:
                self.observe(len(wanted))
                self._score(wanted)
        finally:
            for job in jobs:
                job.drop()
        return True

    def _score(self, jobs: Sequence[_Job]) -> None:
        """Scores jobs together; if that fails, each by itself, so that only those fail that must."""
        try:
            parts = list(self.score([job.block for job in jobs]))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._score([job])
            return
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        start = 0
        for job in jobs:
            stop = start + len(job.block[0]["reason"]) * self.crops
            job.future.set_result({name: values[start:stop] for name, values in columns.items()})
            start = stop
