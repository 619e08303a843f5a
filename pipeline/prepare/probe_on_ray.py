"""Probing on a cluster: Ray Data hands out chunks of a listing, each of which is probed as on one machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline.manifest.schema import SCHEMA
from pipeline.progress import progress
from pipeline.video.probe import FindEarlierProbe, Probe, ProbeItems, ProbeOptions, RecordProbe, probe_in_processes

CHUNK = 64
"""Least files of one task: some seconds, so that progress moves and Ray's cost of 20-70 ms a task does not count."""
MAX_TASKS = 4000
"""Longer listings get larger chunks: Ray's driver needs some milliseconds for a block before anything starts."""
COLUMNS = pa.schema([("place", pa.int64()), *((field.name, SCHEMA.field(field.name).type) for field in fields(Probe))])


def probe_on_ray(
    locations: Sequence[str],
    options: ProbeOptions,
    known: FindEarlierProbe,
    note: RecordProbe = lambda location, probe: None,
    timeout_seconds: float = 120.0,
    chunk: int | None = None,
) -> list[Probe]:
    """``probe_files`` by the tasks of a connected cluster, each on one CPU with one process of its own for the decoders."""
    reference = ray.put(options)  # once in the object store

    def probe(batch: pa.Table) -> pa.Table:
        shared: ProbeOptions = ray.get(reference)
        earlier = [Probe(**row) if row["stamp"] else None for row in batch.drop_columns(["place", "location"]).to_pylist()]
        items = list(zip(batch["location"].to_pylist(), [shared] * len(batch), earlier, strict=True))
        found = dict(probe_in_processes(items, 1, timeout_seconds))
        return _table(batch["place"].to_pylist(), [found[place] for place in range(len(items))])

    work = ProbeItems(locations, options, known)
    chunk = chunk or max(CHUNK, -(-len(work) // MAX_TASKS))
    blocks = [_block(work, range(start, min(start + chunk, len(work)))) for start in range(0, len(work), chunk)]
    data = ray.data.from_blocks(blocks).map_batches(probe, batch_size=None, batch_format="pyarrow", num_cpus=1)
    probes: dict[int, Probe] = {}
    for place, found in progress(_rows(data), len(work), "probed"):
        probes[place] = found
        note(locations[place], found)
    return [probes[place] for place in range(len(work))]


def _block(work: ProbeItems, places: Sequence[int]) -> pa.Table:
    """Locations of a chunk, and what is known of them."""
    items = [work[place] for place in places]
    table = _table(places, [before or Probe() for _, _, before in items])
    return table.append_column("location", pa.array([location for location, _, _ in items], pa.string()))


def _table(places: Sequence[int], probes: Sequence[Probe]) -> pa.Table:
    columns = {field.name: [getattr(probe, field.name) for probe in probes] for field in fields(Probe)}
    return pa.table({"place": places, **columns}, schema=COLUMNS)


def _rows(data: ray.data.Dataset) -> Iterator[tuple[int, Probe]]:
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows: list[dict[str, Any]] = batch.to_pylist()
        for row in rows:
            yield row.pop("place"), Probe(**row)
