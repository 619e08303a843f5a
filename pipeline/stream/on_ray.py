"""Batches for a worker of a cluster, from Ray Data. The only user of Ray Data for training.

It walks the same plan as ``in_process`` and calls the same ``Source.rows``; what differs is who decodes.

A block of the stream is one *row* of Ray's: a worker's share of some steps. Ray deals rows and cuts blocks between them, so it
can neither deal a part of a block nor cut one, however large or small the blocks are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.source import Columns, VideoSource
from pipeline.clips.whole_videos import decode_videos
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.processes.allocator import keep_freed_memory
from pipeline.ray_cluster.resources import Resources
from pipeline.seeds import Floats, Ints
from pipeline.stream.backpressure import limit_blocks_ahead, make_tickets
from pipeline.stream.batches import lay_out_blocks, to_batch
from pipeline.stream.object_store import get_shared

TICKETS_PER_TASK = 1024
"""Blocks announced by one task of the few that announce blocks."""
MAX_TICKET_TASKS = 1000
"""Ray holds what a dataset starts from in memory, and hands it over before anything starts: 20,000 took minutes."""
DECODE_RETRIES = 3
"""How often a decode task is tried again if its process died. Ray's default has no limit: a video that crashes it would be
tried for ever."""


class NoBatch(RuntimeError):
    """No batch arrives anymore; the text gives the likely cause and the remedy."""


def build_ray_stream(source: VideoSource, config: Config, first_step: int, resources: Resources) -> ray.data.Dataset:
    """Builds the dataset of decoded blocks of all steps from ``first_step`` on, in the order that ``streaming_split`` needs.

    It has two maps. In the first, one task at a time yields *tickets*, the numbers of blocks to decode. In the second, each
    decode task turns one ticket into clips. Nowhere is there a list of all blocks, so a stream of a billion blocks starts as
    fast as one of ten.
    """
    layout, planned = lay_out_blocks(source, config, first_step, resources.workers), source.manifest.fingerprint

    def decode(shared: VideoSource, block: int) -> Columns:
        return shared.check_fingerprint(planned).decode_rows(layout.list_rows(block).reshape(-1))

    return build_block_dataset(source, decode, layout.blocks, config.data.blocks_ahead * resources.workers, resources)


def build_video_dataset(
    source: VideoSource, videos: Ints, moments: Floats, size: int, resources: Resources
) -> ray.data.Dataset:
    """Builds the dataset of test videos in the order given, each decoded once for its clips at all ``moments``.

    A block is what ``decode_videos`` returns for ``size`` videos, and is a single row to Ray.
    """
    planned = source.manifest.fingerprint

    def decode(shared: tuple[VideoSource, Ints], block: int) -> Columns:
        shared_source, rows = shared
        return decode_videos(shared_source.check_fingerprint(planned), rows[block * size : (block + 1) * size], moments)

    return build_block_dataset((source, videos), decode, -(-len(videos) // size), 4 * resources.workers, resources)


def build_block_dataset(
    shared: Any, decode: Callable[[Any, int], Columns], blocks: int, ahead: int, resources: Resources
) -> ray.data.Dataset:
    """Builds the dataset of ``decode(shared, block)`` for every block in turn; up to ``ahead`` decoded blocks may wait."""
    reference = ray.put([shared])  # once in the object store, not once per task

    def decode_ticket(ticket: dict[str, Any]) -> Columns:
        keep_freed_memory()  # a block's for the next: page faults were a fifth of what a decode task itself does for a clip
        (number,) = ticket["block"]
        return {name: values[None] for name, values in decode(get_shared(reference), int(number)).items()}

    per_task = max(TICKETS_PER_TASK, -(-blocks // MAX_TICKET_TASKS))
    spans = [pa.table({"first": [start], "last": [min(start + per_task, blocks)]}) for start in range(0, blocks, per_task)]
    one_task = ray.data.TaskPoolStrategy(size=1)
    numbers = ray.data.from_blocks(spans).map_batches(make_tickets, batch_size=None, num_cpus=0, compute=one_task)
    more = {"label_selector": resources.decode_labels} if resources.decode_labels else {}
    with warnings.catch_warnings():
        # max_retries goes this way until Ray 2.64, which has no other yet
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        dataset = numbers.map_batches(
            decode_ticket,
            batch_size=None,
            zero_copy_batch=True,
            num_cpus=resources.cpus_per_decoder,
            max_retries=DECODE_RETRIES,
            **more,
        )
    limit_blocks_ahead(dataset, ahead)
    return dataset


def read_shard_batches(shard: ray.data.DataIterator, share: int, device: torch.device, timeout: float) -> Iterator[Batch]:
    """Yields this worker's batches of ``share`` rows from its shard of ``build_ray_stream``; a thread prepares the next one.

    Raises NoBatch if none arrives within ``timeout`` seconds, or if decode tasks crash.
    """
    batches = _cut_blocks(shard, share, device.type == "cuda")
    waiter = ThreadPoolExecutor(1, thread_name_prefix="batch-wait")
    limit = 10 * timeout  # workers import, actors start and the first blocks are decoded
    next_batch = waiter.submit(next, batches, None)
    while True:
        try:
            batch = next_batch.result(timeout=limit)
        except ray.exceptions.RayError as error:
            raise find_cause(error) or error from None
        except TimeoutError:
            raise NoBatch(
                f"no batch arrived within {limit:.0f} s (data.decode_timeout_seconds): a decoder hangs, the storage does not "
                "answer, or the cluster has no CPU left for decode tasks (see `ray status`)"
            ) from None
        if batch is None:
            return
        next_batch = waiter.submit(next, batches, None)
        yield batch
        limit = timeout


def _cut_blocks(shard: ray.data.DataIterator, share: int, pin: bool) -> Iterator[Batch]:
    """Cuts blocks, each of which is a single row to Ray, into the batches of their steps."""
    for block in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        columns = {name: values[0] for name, values in block.items()}
        for start in range(0, len(columns["row"]), share):
            yield to_batch({name: values[start : start + share] for name, values in columns.items()}, pin)


def find_cause(error: BaseException | None) -> UserError | NoBatch | None:
    """Finds in the chain of an error from Ray what a user should read, and returns the exception to raise instead of it.

    That is the UserError that a decode task raised, a NoBatch if the task's process died, or None for any other error.
    """
    while error is not None and not isinstance(error, ray.exceptions.WorkerCrashedError):
        if isinstance(error, UserError) and not isinstance(error, ray.exceptions.RayTaskError):
            break  # a RayTaskError of the same type wraps it and repeats it with Ray's traces
        error = getattr(error, "cause", None) or error.__cause__
    if isinstance(error, UserError):
        return UserError(str(error))
    if error is not None:
        return NoBatch(
            f"the process of a decode task died {1 + DECODE_RETRIES} times on the same videos (Ray's logs of the node have its "
            "last words): with data.isolate_decoder=true a decoder that crashes is named, and its video replaced"
        )
    return None
