"""The stream's figures for Ray's own metrics: Prometheus scrapes them from every node, Grafana and the dashboard show them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Gauge

from pipeline.clips.pressure import store_use

GAUGES = {
    "seconds/data_share": "Share of the time in which this train worker waited for its next batch.",
    "seconds/decode_per_clip": "Seconds that decoding one video for both students took, mean over this worker's.",
    "memory/step_megabytes": "Bytes of decoded clips that all workers took in a step, in 10^6.",
    "memory/store_megabytes": "Bytes in the object store of this worker's node, in 10^6.",
    "memory/spilled_megabytes": "Bytes that this node's object store wrote to disk for want of room, in 10^6: should stay 0.",
    "clips_per_second": "Videos trained per second over all workers.",
    "quarantined": "Decodes that failed and were replaced, over the run.",
}
"""Names in metrics.jsonl, and what Prometheus says of ``ray_actnetformer_NAME`` (with _ for /)."""


def store_figures() -> dict[str, float]:
    """``memory/store_megabytes`` and ``memory/spilled_megabytes`` of this node; empty without Ray."""
    if not ray.is_initialized():
        return {}
    use = store_use()
    return {"memory/store_megabytes": use.used / 1e6, "memory/spilled_megabytes": use.spilled / 1e6}


def publish(run: str, rank: int, record: Mapping[str, Any]) -> None:
    """Set the gauges that ``record`` has values for; nothing without Ray."""
    if ray.is_initialized():
        for name in GAUGES.keys() & record.keys():
            _gauge(name).set(float(record[name]), tags={"run": run, "worker": str(rank)})


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"actnetformer_{name.replace('/', '_')}", description=GAUGES[name], tag_keys=("run", "worker"))
