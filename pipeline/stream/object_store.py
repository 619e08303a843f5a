"""How full the object store of this node is, for the metrics of a run."""

from __future__ import annotations

import grpc
import ray

from pipeline.stream.backpressure import read_store_use


def read_store_figures() -> dict[str, float]:
    """Reads ``memory/store_megabytes`` and ``memory/spilled_megabytes`` of this node.

    Returns an empty dict without Ray, or if Ray does not reply: a figure that is only displayed must not end a run.
    """
    if not ray.is_initialized():
        return {}
    try:
        use = read_store_use()
    except (grpc.RpcError, StopIteration):
        return {}
    return {"memory/store_megabytes": use.used / 1e6, "memory/spilled_megabytes": use.spilled / 1e6}
