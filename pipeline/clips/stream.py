"""Batches for a worker: from Ray Data on a cluster, from threads in one process. The only user of Ray Data for training.

Both walk the same plan and call the same ``Source.rows``; what differs is who decodes.

On a cluster a block of the stream is one *row* of Ray's: a worker's share of some steps. Ray deals rows and cuts blocks between
them, so it can neither deal a part of a block nor cut one, however large or small the blocks are.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from pipeline.clips.allocator import keep_freed_memory
from pipeline.clips.batch import Batch
from pipeline.clips.device import own_device
from pipeline.clips.plan import Deal, largest_share, worker_rows
from pipeline.clips.pressure import bound
from pipeline.clips.seeds import Floats, Ints
from pipeline.clips.source import Columns, Source, failures_of
from pipeline.clips.tasks import shared_by_tasks, tickets
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.manifest.isolation import num_cores
from pipeline.resources import Resources, worker_cpus

TICKETS_PER_TASK = 1024
"""Blocks announced by one task of the few that announce blocks."""
MAX_TICKET_TASKS = 1000
"""Ray holds what a dataset starts from in memory, and hands it over before anything starts: 20,000 took minutes."""
DECODE_RETRIES = 3
"""Of a decode task whose process died. Ray's default is without end: a video that crashes it would be tried for ever."""

T = TypeVar("T")
R = TypeVar("R")
Grid = tuple[Ints, Floats, Floats]
"""Manifest row, moment and window of every test view."""


class NoBatch(RuntimeError):
    """The stream stands still."""


def make_deal(source: Source, config: Config, first_step: int, workers: int) -> Deal:
    """The blocks of all steps from ``first_step`` on; they double until they hold ``data.clips_per_block`` videos."""
    clips = largest_share(source.plan.rows_per_step, workers) * source.plan.slots
    steps_per_block = -(-config.data.clips_per_block // clips)
    return Deal(first_step, config.train.steps, source.plan.rows_per_step, workers, steps_per_block)


def ray_stream(source: Source, config: Config, first_step: int, resources: Resources) -> ray.data.Dataset:
    """Decoded blocks of all steps from ``first_step`` on, in the order in which ``streaming_split`` deals them.

    Two maps: one task at a time hands out *tickets*, the numbers of blocks to come, and decode tasks turn one each into clips.
    Starting takes as long for a billion blocks as for ten, and the plan is nowhere a list.
    """
    deal, planned = make_deal(source, config, first_step, resources.workers), source.manifest.fingerprint

    def decode(shared: Source, block: int) -> Columns:
        return shared.planned_on(planned).rows(deal.rows(block).reshape(-1))

    return _ray_blocks(source, decode, deal.blocks, config.data.blocks_ahead * resources.workers, resources)


def ray_views(source: Source, grid: Grid, size: int, resources: Resources) -> ray.data.Dataset:
    """Decoded test views in their order, ``size`` a block: what ``source.views`` gives, each block a single row of Ray's."""
    planned = source.manifest.fingerprint

    def decode(shared: tuple[Source, Grid], block: int) -> Columns:
        here, (videos, moments, windows) = shared
        part = slice(block * size, (block + 1) * size)
        return here.planned_on(planned).views(videos[part], moments[part], windows[part])

    return _ray_blocks((source, grid), decode, -(-len(grid[0]) // size), 4 * resources.workers, resources)


def _ray_blocks(
    shared: Any, decode: Callable[[Any, int], Columns], blocks: int, ahead: int, resources: Resources
) -> ray.data.Dataset:
    """``decode(shared, block)`` of every block in turn, of which ``ahead`` may wait."""
    reference = ray.put([shared])  # once in the object store, not once per task

    def work(ticket: dict[str, Any]) -> Columns:
        keep_freed_memory()  # a block's for the next: page faults were a fifth of what a decode task itself does for a clip
        (number,) = ticket["block"]
        return {name: values[None] for name, values in decode(shared_by_tasks(reference), int(number)).items()}

    each = max(TICKETS_PER_TASK, -(-blocks // MAX_TICKET_TASKS))
    spans = [pa.table({"first": [start], "last": [min(start + each, blocks)]}) for start in range(0, blocks, each)]
    one = ray.data.TaskPoolStrategy(size=1)
    numbers = ray.data.from_blocks(spans).map_batches(tickets, batch_size=None, num_cpus=0, compute=one)
    more = {"label_selector": resources.decode_labels} if resources.decode_labels else {}
    with warnings.catch_warnings():
        # max_retries goes this way until Ray 2.64, which has no other yet
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        dataset = numbers.map_batches(
            work,
            batch_size=None,
            zero_copy_batch=True,
            num_cpus=resources.cpus_per_decoder,
            max_retries=DECODE_RETRIES,
            **more,
        )
    bound(dataset, ahead)
    return dataset


def shard_batches(shard: ray.data.DataIterator, share: int, device: torch.device, timeout: float) -> Iterator[Batch]:
    """This worker's batches of ``share`` rows from its shard of ``ray_stream``, copied one step ahead.

    Raises NoBatch if none arrives within ``timeout`` seconds, or if decode tasks crash.
    """
    batches = _cut(shard, share, device.type == "cuda")
    waiter = ThreadPoolExecutor(1, thread_name_prefix="batch-wait")
    limit = 10 * timeout  # workers import, actors start and the first blocks are decoded
    coming = waiter.submit(next, batches, None)
    while True:
        try:
            batch = coming.result(timeout=limit)
        except ray.exceptions.RayError as error:
            raise told_by_task(error) or error from None
        except TimeoutError:
            raise NoBatch(
                f"no batch arrived within {limit:.0f} s (data.decode_timeout_seconds): a decoder hangs, the storage does not "
                "answer, or the cluster has no CPU left for decode tasks (see `ray status`)"
            ) from None
        if batch is None:
            return
        coming = waiter.submit(next, batches, None)
        yield batch
        limit = timeout


def _cut(shard: ray.data.DataIterator, share: int, pin: bool) -> Iterator[Batch]:
    """Blocks, each a single row of Ray's, cut into the batches of their steps."""
    for block in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        columns = {name: values[0] for name, values in block.items()}
        for start in range(0, len(columns["row"]), share):
            yield to_batch({name: values[start : start + share] for name, values in columns.items()}, pin)


def told_by_task(error: BaseException | None) -> UserError | NoBatch | None:
    """What to raise for an error of the stream: the UserError that a decode task ended with, or that its process died."""
    while error is not None and not isinstance(error, ray.exceptions.WorkerCrashedError):
        if isinstance(error, UserError) and not isinstance(error, ray.exceptions.RayTaskError):
            break  # a RayTaskError of the same type is around it and says it with Ray's traces
        error = getattr(error, "cause", None) or error.__cause__
    if isinstance(error, UserError):
        return UserError(str(error))
    if error is not None:
        return NoBatch(
            f"the process of a decode task died {1 + DECODE_RETRIES} times on the same videos (Ray's logs of the node have its "
            "last words): with data.isolate_decoder=true a decoder that crashes is named, and its video replaced"
        )
    return None


def local_batches(source: Source, config: Config, first_step: int, ahead: int = 2) -> Iterator[Batch]:
    """All batches from ``first_step`` on, decoded by threads of this process, ``ahead`` steps in advance: on all cores while
    the next batch is waited for, and otherwise on those that torch's threads, or the one that keeps a GPU at work, leave, but
    one at least."""
    steps, cores = range(first_step, config.train.steps), num_cores()
    busy = torch.get_num_threads() if own_device(config).type == "cpu" else int(worker_cpus(cores, gpu=True))
    with Decoders(cores) as decoders:

        def decode(step: int) -> Columns:
            return source.rows(worker_rows([step], source.plan.rows_per_step, 0, 1)[0], decoders)

        for columns in map_ahead(decode, steps, ahead):
            batch = to_batch(columns)
            decoders.allow(max(1, cores - busy))
            try:
                yield batch
            finally:
                decoders.allow(cores)


class Decoders(ThreadPoolExecutor):
    """Threads, as many of which work at a time as ``allow`` said last."""

    def __init__(self, number: int) -> None:
        super().__init__(number, thread_name_prefix="decoder")
        self._allowed, self._working, self._turn = number, 0, threading.Condition()

    def allow(self, number: int) -> None:
        """From now on; what more are doing is finished first."""
        with self._turn:
            self._allowed = number
            self._turn.notify_all()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As every executor's."""
        return super().submit(self._in_turn, fn, *args, **kwargs)

    def _in_turn(self, fn: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        with self._turn:
            self._turn.wait_for(lambda: self._working < self._allowed)
            self._working += 1
        try:
            return fn(*args, **kwargs)
        finally:
            with self._turn:
                self._working -= 1
                self._turn.notify()


def map_ahead(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``function`` of every item in turn, by ``ahead`` threads that are as many items in advance, and no more."""
    with ThreadPoolExecutor(ahead) as threads:
        pending: deque[Any] = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def to_batch(columns: Columns, pin: bool = False) -> Batch:
    """Columns of ``Source.rows`` as tensors, without rows that stand for none; one copy, into pinned memory if wanted."""
    there = columns["row"] >= 0
    if not there.all():
        columns = {name: column[there] for name, column in columns.items()}

    def tensor(name: str) -> torch.Tensor:
        # blocks are read-only views of the object store: copied, so that they can be released
        value = np.asarray(columns[name])
        copy = torch.empty(value.shape, dtype=torch.from_numpy(np.empty(0, value.dtype)).dtype, pin_memory=pin)
        np.copyto(copy.numpy(), value)
        return copy

    return Batch(
        rows=tensor("row"),
        videos=tensor("video"),
        labels=tensor("label"),
        primary=tensor("primary"),
        auxiliary=tensor("auxiliary"),
        quarantined=failures_of(columns),
        decode_seconds=float(np.sum(columns["seconds"])),
    )
