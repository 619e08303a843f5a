"""Batches for a worker: from Ray Data on a cluster, from threads in one process. The only user of Ray Data for training.

Both walk the same plan and call the same ``Source.rows``; what differs is who decodes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.plan import deal, largest_share, worker_rows
from pipeline.clips.source import Columns, Source, failures_of
from pipeline.config import Config
from pipeline.errors import UserError


class NoBatch(RuntimeError):
    """The stream stands still."""


def steps_per_block(source: Source, workers: int, clips_per_block: int) -> int:
    """Steps whose share for one worker goes into a block, so that a block decodes ``clips_per_block`` videos at least."""
    share = largest_share(source.plan.rows_per_step, workers) * source.plan.slots
    return -(-clips_per_block // share)


def ray_stream(source: Source, config: Config, first_step: int, workers: int, cpus_per_decoder: float) -> ray.data.Dataset:
    """Decoded blocks of all steps from ``first_step`` on, in the order in which ``streaming_split`` deals them.

    One block of run rows, made in this process, is one decode task: Ray's readers would need whole CPUs of their own and
    put a small manifest into a single task.
    """
    blocks = deal(
        first_step,
        config.train.steps,
        source.plan.rows_per_step,
        workers,
        steps_per_block(source, workers, config.data.clips_per_block),
    )
    reference = ray.put(source)  # once in the object store, not once per task

    def decode(batch: dict[str, Any]) -> Columns:
        shared: Source = ray.get(reference)
        return shared.rows(batch["row"])

    rows = ray.data.from_blocks([pa.table({"row": pa.array(block)}) for block in blocks])
    return rows.map_batches(decode, batch_size=None, num_cpus=cpus_per_decoder, zero_copy_batch=True)


def shard_batches(shard: ray.data.DataIterator, share: int, device: torch.device, timeout: float) -> Iterator[Batch]:
    """This worker's batches from its shard of ``ray_stream``. Raises NoBatch if none arrives within ``timeout`` seconds."""
    batches = iter(shard.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2))
    waiter = ThreadPoolExecutor(1, thread_name_prefix="batch-wait")
    limit = 10 * timeout  # workers import, actors start and the first blocks are decoded
    while True:
        try:
            columns = waiter.submit(next, batches, None).result(timeout=limit)
        except ray.exceptions.RayTaskError as error:
            raise _user_error(error) or error from None
        except TimeoutError:
            raise NoBatch(
                f"no batch arrived within {limit:.0f} s (data.decode_timeout_seconds): a decoder hangs, the storage does not "
                "answer, or the cluster has no CPU left for decode tasks (see `ray status`)"
            ) from None
        if columns is None:
            return
        yield to_batch(columns, pin=device.type == "cuda")
        limit = timeout


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError that a decode task ended with, if it did."""
    while error is not None and not isinstance(error, UserError):
        error = getattr(error, "cause", None) or error.__cause__
    return UserError(str(error)) if error else None


def local_batches(source: Source, config: Config, first_step: int, ahead: int = 2) -> Iterator[Batch]:
    """All batches from ``first_step`` on, decoded by threads of this process, ``ahead`` steps in advance."""
    steps = np.arange(first_step, config.train.steps)
    with ThreadPoolExecutor(ahead) as steppers, ThreadPoolExecutor(os.cpu_count()) as decoders:
        pending: deque[Any] = deque()
        for step in steps:
            rows = worker_rows([step], source.plan.rows_per_step, 0, 1)[0]
            pending.append(steppers.submit(source.rows, rows, decoders))
            if len(pending) > ahead:
                yield to_batch(pending.popleft().result())
        while pending:
            yield to_batch(pending.popleft().result())


def to_batch(columns: Columns, pin: bool = False) -> Batch:
    """Columns of ``Source.rows`` as tensors, without rows that stand for none; one copy, into pinned memory if wanted."""
    there = columns["row"] >= 0
    if not there.all():
        columns = {name: column[there] for name, column in columns.items()}

    def tensor(name: str) -> torch.Tensor:
        # blocks are read-only views of the object store: copied, so that they can be released
        value = torch.from_numpy(np.array(columns[name]))
        return value.pin_memory() if pin else value

    return Batch(
        rows=tensor("row"),
        videos=tensor("video"),
        labels=tensor("label"),
        primary=tensor("primary"),
        auxiliary=tensor("auxiliary"),
        quarantined=failures_of(columns),
    )
