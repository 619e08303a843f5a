"""The Ray cluster that a command works on: joined or started, and looked at before anything is asked of it."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import ray
from ray._common.utils import get_ray_address_file
from ray._private.services import canonicalize_bootstrap_address

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.resources import Node, Resources, fit_nodes

QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours has rate and time left; Ray's rows are blocks to its reader
    "RAY_DATA_LOG_LEVEL": "WARNING",  # each start and end of a stream otherwise
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line of a worker twice
}
CONNECT_SECONDS = 5.0
"""For a port to take a connection."""
_log = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, else one that runs on this machine, else start one.

    Raises UserError if none answers where RAY_ADDRESS says.
    """
    quiet = {name: os.environ.setdefault(name, value) for name, value in QUIET.items()}
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if ray.is_initialized():
        return
    try:
        ray.init(_address(), logging_level=logging.WARNING, runtime_env={"env_vars": quiet})
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers ({error}): unset RAY_ADDRESS to use this machine, or start one") from None


def connect_one(what: str) -> None:
    """``connect`` to a cluster of one node, because ``what`` compares with processes of this machine. Raises UserError."""
    connect()
    if len([node for node in ray.nodes() if node["Alive"]]) > 1:
        raise UserError(f"{what} compares with one machine: unset RAY_ADDRESS, or name a cluster of one node")


def answers() -> bool:
    """Whether a cluster is joined, or one listens where ``connect`` would look first; starts nothing and writes nothing."""
    if ray.is_initialized():
        return True
    address = _told()
    return address is not None and _refusal(address) is None


def _told() -> str | None:
    """HOST:PORT that RAY_ADDRESS or the note of ``ray start`` names; None also for a URL, which Ray asks by other means."""
    return None if "://" in os.environ.get("RAY_ADDRESS", "") else canonicalize_bootstrap_address(None)


def _refusal(address: str) -> OSError | None:
    """Why nobody takes a connection there; None if somebody does."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None


def _address() -> str | None:
    """What ``ray.init`` is given: None leaves the choice to Ray, "local" starts a cluster on this machine.

    ``ray start`` leaves a note of its address behind when it is killed, and ``ray.init`` tries an address where nobody
    listens for a quarter of an hour: one look at its port, of at most CONNECT_SECONDS, comes first.
    """
    address = _told()
    refusal = _refusal(address) if address is not None else None
    if address is None or refusal is None:
        return None
    if os.environ.get("RAY_ADDRESS"):
        raise ConnectionError(f"{address}: {refusal}")
    if not isinstance(refusal, ConnectionRefusedError) or address.rsplit(":", 1)[0] != ray.util.get_node_ip_address():
        raise ConnectionError(f"{address}: {refusal}; `ray stop` forgets it")
    _log.warning("the Ray cluster once started on this machine, %s, is gone: this command starts its own", address)
    Path(get_ray_address_file(None)).unlink(missing_ok=True)  # Ray Train's own processes would try it too
    return "local"


def check_cluster(config: Config, concurrent: int = 1) -> Resources:
    """Compare what a run needs with its share of the cluster, one of ``concurrent`` such runs. Raises UserError."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    machines = [(node["Resources"], node.get("Labels", {})) for node in alive]
    return fit_nodes(config, [Node(r.get("CPU", 0.0), r.get("GPU", 0.0), labels) for r, labels in machines], concurrent)
