"""The object store of a node: what Ray's tasks share in it, and how full it is, for the metrics of a run.

Tasks import this. It does not import torch, which would cost each process 2-4 s of CPU before it can begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
import ray
from ray._private.internal_api import node_stats


@lru_cache(maxsize=1)
def get_shared(reference: ray.ObjectRef) -> Any:
    """Returns the only item of the list that ``reference`` stands for, read once per process; arrays stay in shared memory."""
    (shared,) = ray.get(reference)
    return shared


@dataclass(frozen=True)
class StoreUse:
    """How many bytes this node's object store holds, and how many it has written to disk so far because it was full."""

    used: int
    spilled: int


def read_store_use() -> StoreUse:
    """Asks the object store of the node that this process runs on. Needs a connection to Ray."""
    node = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
    return StoreUse(int(stats.object_store_bytes_used), int(stats.spilled_bytes_total))


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
