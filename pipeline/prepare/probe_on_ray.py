"""Probing on a cluster: Ray Data distributes chunks of a listing, each of which is probed as on a single machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline.manifest.schema import SCHEMA
from pipeline.progress import show_progress
from pipeline.video.probe import (
    FindEarlierProbe,
    Probe,
    ProbeItem,
    ProbeItems,
    ProbeOptions,
    RecordProbe,
    probe_in_processes,
)

CHUNK = 64
"""Smallest number of files in one task. It takes some seconds, so that progress is seen and Ray's 20-70 ms do not count."""
MAX_TASKS = 4000
"""Longer listings get larger chunks: Ray's driver needs some milliseconds for a block before anything starts."""
COLUMNS = pa.schema([("index", pa.int64()), *((field.name, SCHEMA.field(field.name).type) for field in fields(Probe))])


def probe_on_ray(
    locations: Sequence[str],
    options: ProbeOptions,
    find_earlier: FindEarlierProbe,
    record: RecordProbe = lambda location, probe: None,
    timeout_seconds: float = 120.0,
    chunk: int | None = None,
) -> list[Probe]:
    """Does what ``probe_files`` does in the tasks of a connected cluster. Each task has one CPU and one decoding process."""
    reference = ray.put(options)  # once in the object store

    def probe_batch(batch: pa.Table) -> pa.Table:
        shared: ProbeOptions = ray.get(reference)
        earlier = [Probe(**row) if row["stamp"] else None for row in batch.drop_columns(["index", "location"]).to_pylist()]
        items = list(zip(batch["location"].to_pylist(), [shared] * len(batch), earlier, strict=True))
        by_item = dict(probe_in_processes(items, 1, timeout_seconds))
        return _make_table(batch["index"].to_pylist(), [by_item[i] for i in range(len(items))])

    items = ProbeItems(locations, options, find_earlier)
    chunk = chunk or max(CHUNK, -(-len(items) // MAX_TASKS))
    starts = range(0, len(items), chunk)
    blocks = [_make_block(items, range(start, min(start + chunk, len(items)))) for start in starts]
    data = ray.data.from_blocks(blocks).map_batches(probe_batch, batch_size=None, batch_format="pyarrow", num_cpus=1)
    probes: dict[int, Probe] = {}
    for index, probe in show_progress(_iterate_probes(data), len(items), "probed"):
        probes[index] = probe
        record(locations[index], probe)
    return [probes[index] for index in range(len(items))]


def _make_block(items: ProbeItems, indices: Sequence[int]) -> pa.Table:
    """The locations of a chunk and their earlier probes."""
    chunk: list[ProbeItem] = [items[index] for index in indices]
    table = _make_table(indices, [earlier or Probe() for _, _, earlier in chunk])
    return table.append_column("location", pa.array([location for location, _, _ in chunk], pa.string()))


def _make_table(indices: Sequence[int], probes: Sequence[Probe]) -> pa.Table:
    columns = {field.name: [getattr(probe, field.name) for probe in probes] for field in fields(Probe)}
    return pa.table({"index": indices, **columns}, schema=COLUMNS)


def _iterate_probes(data: ray.data.Dataset) -> Iterator[tuple[int, Probe]]:
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows: list[dict[str, Any]] = batch.to_pylist()
        for row in rows:
            yield row.pop("index"), Probe(**row)
