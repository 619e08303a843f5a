"""The floor of ``bench stream``: plain processes that only decode. They import this file, and so neither torch nor Ray."""

from __future__ import annotations

import multiprocessing
import time

from pipeline.bench.figures import compute_steady_rate
from pipeline.clips.plan import BlockLayout, compute_worker_rows
from pipeline.clips.source import VideoSource

PROCESSES = 2
"""The number of processes of the floor, and of consumers of the stream.

The stream decodes in as many tasks at once as the floor has processes; only on two CPUs, as in training, in two tasks for each.
"""


def measure_floor_rate(source: VideoSource, layout: BlockLayout) -> float:
    """Measures videos per second in the steady state of plain processes that only decode the same rows, in the same way."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        arguments = [(source, layout.last_step, worker) for worker in range(PROCESSES)]
        times = pool.starmap(_decode_all, arguments, chunksize=1)
    return compute_steady_rate(times, layout.share * source.plan.slots, layout)


def _decode_all(source: VideoSource, steps: int, worker: int) -> list[float]:
    """Decodes the rows of one of the floor's processes and returns the time in seconds at which each step was decoded."""
    times = []
    for rows in compute_worker_rows(range(steps), source.plan.rows_per_step, worker, PROCESSES):
        source.decode_rows(rows)
        times.append(time.time())
    return times
