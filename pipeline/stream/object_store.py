"""What the object store of this node holds, for the metrics of a run."""

from __future__ import annotations

import grpc
import ray

from pipeline.stream.backpressure import store_use


def store_figures() -> dict[str, float]:
    """``memory/store_megabytes`` and ``memory/spilled_megabytes`` of this node; empty without Ray, or if it does not answer:
    what is only looked at must not end a run."""
    if not ray.is_initialized():
        return {}
    try:
        use = store_use()
    except (grpc.RpcError, StopIteration):
        return {}
    return {"memory/store_megabytes": use.used / 1e6, "memory/spilled_megabytes": use.spilled / 1e6}
