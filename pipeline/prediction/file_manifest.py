"""Lists input videos as a manifest in memory, so that they are decoded and scored as the test videos of a data set are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from pipeline.manifest.schema import SCHEMA, Manifest, Split, compute_fingerprint
from pipeline.prediction.input_videos import InputVideo
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing
from pipeline.video.probe import Probe, ProbeItems, ProbeOptions, probe_in_processes

ProbeLocations = Callable[[Sequence[str]], list[Probe]]
"""Probes files, and returns the probes in the same order."""


def probe_here(locations: Sequence[str]) -> list[Probe]:
    """Probes files in processes of this machine."""
    items = ProbeItems(locations, ProbeOptions(), lambda location: None)
    probes = dict(probe_in_processes(items))
    return [probes[index] for index in range(len(locations))]


def make_manifest(inputs: Sequence[InputVideo], classes: Sequence[str], probe: ProbeLocations = probe_here) -> Manifest:
    """Makes a manifest whose rows are the inputs, in their order, as test videos without labels.

    What manifests know about their videos is taken from there; other files are probed.
    """
    found = [index for index, video in enumerate(inputs) if video.manifest is None]
    tables = [_build_probed_table([inputs[index] for index in found], probe)] if found else []
    order = list(found)
    for manifest in {id(video.manifest): video.manifest for video in inputs if video.manifest is not None}.values():
        listed = [index for index, video in enumerate(inputs) if video.manifest is manifest]
        tables.append(manifest.table.take(pa.array([inputs[index].row for index in listed])))
        order += listed
    table = pa.concat_tables(tables)
    columns: dict[str, pa.Array] = {
        "id": pa.array([f"{index:09d}" for index in order]),
        "uri": pa.array([inputs[index].location for index in order]),
        "split": pa.array(["test"] * len(order)),
        "class": pa.nulls(len(order), pa.string()),
        "label": pa.array([-1] * len(order), pa.int32()),
        "group": pa.nulls(len(order), pa.string()),
    }
    for name, values in columns.items():
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), values)
    table = table.sort_by("id").combine_chunks()
    return Manifest(table, tuple(classes), "", "files", compute_fingerprint(table, classes), "the files")


def _build_probed_table(inputs: Sequence[InputVideo], probe: ProbeLocations) -> pa.Table:
    locations = tuple(video.location for video in inputs)
    nothing = (None,) * len(inputs)
    splits: tuple[Split, ...] = tuple("test" for _ in inputs)
    starts, ends = tuple(video.start for video in inputs), tuple(video.end for video in inputs)
    listing = Listing("", "files", locations, nothing, nothing, splits, starts=starts, ends=ends, class_list=())
    return build_table(listing, probe(locations))
