"""The nodes of a cluster as its dashboard tells them, and whether a configuration's run would fit on them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.ray_cluster.dashboard import Cluster
from pipeline.ray_cluster.resources import Node, plan_resources_on_nodes

RAYS_OWN = "ray.io/"
"""Labels that begin so are set by Ray on every node."""


@dataclass(frozen=True)
class ClusterNode:
    """A node, and what Ray may give away of it, which may be less than the machine has."""

    name: str
    """Its address or, if it was given one, its name."""
    is_head: bool
    cpus: float
    gpus: float
    cpus_in_use: float | None
    """What running tasks and actors have reserved; None if the dashboard does not tell."""
    gpus_in_use: float | None
    memory_bytes: int
    object_store_bytes: int
    labels: Mapping[str, str]
    """Labels that were given with ``ray start --labels``."""

    @property
    def planned(self) -> Node:
        """The node as plans of runs take it."""
        return Node(self.cpus, self.gpus, self.labels)


@dataclass(frozen=True)
class ClusterState:
    """A cluster at one moment."""

    address: str
    ray: str
    python: str
    """Versions of all nodes: Ray lets no node join that has others."""
    nodes: tuple[ClusterNode, ...]
    """The nodes that are alive, the head first."""


@dataclass(frozen=True)
class Fit:
    """Whether a configuration's run fits on the nodes."""

    fits: bool
    description: str
    """What the run would reserve, or what is missing and the remedy."""
    train_nodes: tuple[str, ...] = ()
    decode_nodes: tuple[str, ...] = ()
    """Names of the nodes that may train and decode, by their labels."""


def read_cluster_state(cluster: Cluster) -> ClusterState:
    """Reads versions and nodes from the dashboard. Raises the same as ``Cluster.read``."""
    versions = cluster.read("/api/v0/cluster_metadata")["data"]
    found = cluster.read("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    usage = (cluster.read("/nodes?view=summary").get("data") or {}).get("nodeLogicalResources") or {}
    nodes = [parse_node(one, usage.get(one["node_id"], "")) for one in found if one["state"] == "ALIVE"]
    nodes.sort(key=lambda node: (not node.is_head, node.name))
    return ClusterState(cluster.address, versions["rayVersion"], versions["pythonVersion"], tuple(nodes))


def parse_node(facts: Mapping[str, Any], usage: str) -> ClusterNode:
    """Parses a node of Ray's state API, and its line of the resources in use, for example ``0.5/2.0 CPU``."""
    total = facts["resources_total"]
    used = {kind: float(amount) for amount, kind in re.findall(r"([\d.]+)/[\d.]+ (CPU|GPU)", usage)}
    gpus = total.get("GPU", 0.0)
    return ClusterNode(
        name=facts.get("node_name") or facts["node_ip"],
        is_head=bool(facts.get("is_head_node")),
        cpus=total.get("CPU", 0.0),
        gpus=gpus,
        cpus_in_use=used.get("CPU"),
        gpus_in_use=used.get("GPU") if gpus else None,
        memory_bytes=int(total.get("memory", 0)),
        object_store_bytes=int(total.get("object_store_memory", 0)),
        labels={name: text for name, text in (facts.get("labels") or {}).items() if not name.startswith(RAYS_OWN)},
    )


def check_fit(config: Config, nodes: Sequence[ClusterNode]) -> Fit:
    """Computes, as ``jobs.train --dry-run`` does on a node, whether a run fits on all of ``nodes`` if nothing else runs.

    The memory of GPUs is not compared, because the dashboard does not tell it.
    """
    if config.scale.workers == 0:
        return Fit(True, "reserves nothing: scale.workers=0 trains in the command's own process")
    try:
        resources = plan_resources_on_nodes(config, [node.planned for node in nodes])
    except UserError as error:
        return Fit(False, str(error))
    worker = " and ".join(f"{amount:g} {kind}" for kind, amount in resources.worker.items())
    return Fit(
        True,
        f"reserves {resources.workers} x {worker} to train, {resources.decoders}",
        tuple(node.name for node in nodes if node.planned.has_labels(resources.train_labels)),
        tuple(node.name for node in nodes if node.planned.has_labels(resources.decode_labels)),
    )
