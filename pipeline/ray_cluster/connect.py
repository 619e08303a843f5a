"""Joins or starts the Ray cluster that a command uses, and checks whether the cluster can do what the run needs."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray._common.utils import get_default_ray_temp_dir, get_ray_address_file
from ray._private.services import canonicalize_bootstrap_address, find_node_ids

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.ray_cluster import address as addresses
from pipeline.ray_cluster.address import VARIABLE, UnusableAddress
from pipeline.ray_cluster.output import divert_harmless_lines
from pipeline.ray_cluster.resources import Node, Resources, plan_resources_on_nodes
from pipeline.ray_cluster.sockets import make_short_temporary_folder, shorten_temporary_folder_of_children

if TYPE_CHECKING:
    from pipeline.hardware import Hardware

QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours has rate and time left; Ray's rows are blocks to its reader
    "RAY_DATA_LOG_LEVEL": "WARNING",  # each start and end of a stream otherwise
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line of a worker twice
}
START_TIMEOUT = "timed out during startup"
"""A part of what Ray 2.60 says, in an exception of no type of its own, when it has not started after 30 s, its fixed limit."""
NODE_SECONDS = 5.0
"""How long to wait for this machine's raylet, which may still be starting."""
ELSEWHERE = (
    "run the command on a node of the cluster, make this machine one with `ray start --address=HOST:PORT`, or send the command "
    "with python -m jobs.submit --address http://HOST:8265 COMMAND"
)
_log = logging.getLogger(__name__)


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS names, or else one that runs on this machine, or else starts one.

    Raises UserError within seconds if RAY_ADDRESS is not the address of a cluster or no cluster answers there.
    """
    quiet = {name: os.environ.setdefault(name, value) for name, value in QUIET.items()}
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if ray.is_initialized():
        return
    address = _choose_address()
    starts = address == "local"  # whoever joins a cluster uses its folder
    folder = make_short_temporary_folder(find_temporary_folder()) if starts else None
    if folder is not None:
        atexit.register(disconnect)  # before the folder's short name is removed, which its processes use: last in, first out
    try:
        # the dashboard's processes speak through sockets in TMPDIR, not in Ray's folder
        with divert_harmless_lines(), shorten_temporary_folder_of_children() if starts else contextlib.nullcontext():
            ray.init(address, logging_level=logging.WARNING, runtime_env={"env_vars": quiet}, _temp_dir=folder)
    except ConnectionError as error:
        raise UserError(f"the Ray cluster cannot be joined ({error.__cause__ or error}): {ELSEWHERE}") from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UserError(f"the Ray cluster cannot be joined: {error}") from None
    except OSError as error:
        raise UserError(f"Ray cannot start on this machine: {error}; TMPDIR must name a folder that can be written") from None
    except Exception as error:
        if START_TIMEOUT not in str(error):
            raise
        raise UserError(
            "Ray did not start on this machine within 30 s, its limit: the machine is too busy. Run the command again when "
            "less runs beside it; jobs.train works without Ray, too, with scale.workers=0"
        ) from None


def disconnect() -> None:
    """Leaves the cluster; one that ``connect`` started ends, with all of its processes."""
    ray.shutdown()


def count_cpus() -> float:
    """Counts the CPUs of the cluster that ``connect`` joined."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def find_temporary_folder() -> Path:
    """Finds the folder in which Ray makes its files and sockets, as TMPDIR and RAY_TMPDIR say."""
    return Path(get_default_ray_temp_dir())


def connect_to_one_node(what: str) -> None:
    """Connects as ``connect`` does, for a benchmark ``what`` that also measures processes of this machine.

    Raises UserError if the cluster has more than one node.
    """
    connect()
    if len([node for node in ray.nodes() if node["Alive"]]) > 1:
        raise UserError(f"{what} compares with one machine: unset RAY_ADDRESS, or name a cluster of one node")


def is_reachable() -> bool:
    """Returns whether ``connect`` would use a cluster that already runs. Starts nothing and writes nothing.

    Raises UserError if RAY_ADDRESS is not the address of a cluster.
    """
    if ray.is_initialized():
        return True
    address = _known_address()
    return address is not None and _find_refusal(address) is None


def _known_address() -> str | None:
    """Returns the HOST:PORT that RAY_ADDRESS or the file written by ``ray start`` names; None if a cluster must be started."""
    named = addresses.read_ray_address()
    if named is not None:
        addresses.check_form(named)
    try:
        address: str | None = canonicalize_bootstrap_address(named)
    except ConnectionError:
        raise UserError(
            f"{VARIABLE}={named}: no Ray runs on this machine; start one with `ray start --head`, or unset {VARIABLE}, and the "
            "command starts its own"
        ) from None
    return address


def _find_refusal(address: str) -> UnusableAddress | None:
    """Returns why no cluster can be joined there, or None if one can be."""
    refusal = addresses.find_refusal(address)
    noted = addresses.read_ray_address() in (None, "auto")
    return None if refusal is not None and refusal.wants_token and noted else refusal  # Ray finds this machine's token itself


def _choose_address() -> str | None:
    """Returns the address for ``ray.init``: None to join the cluster that was found to run, or "local" to start one.

    A ``ray start`` that is killed leaves a file with its address behind, and ``ray.init`` would try for a quarter of an hour
    to reach an address where nothing listens.
    """
    address = _known_address()
    if address is None:
        return "local"
    refusal = _find_refusal(address)
    if refusal is None:
        _require_node(address)
        return None  # an address would be a named one to Ray, for which it looks for no token
    named = addresses.read_ray_address()
    if named not in (None, "auto"):
        raise UserError(f"no Ray cluster can be joined at {VARIABLE}={named} ({refusal.reason}): {refusal.remedy}")
    if not _is_gone(address, refusal):
        raise UserError(
            f"the Ray cluster that `ray start` noted, {address}, cannot be joined ({refusal.reason}): `ray stop` ends it and "
            f"forgets the address; or {refusal.remedy}"
        )
    _log.warning("the Ray cluster once started on this machine, %s, is gone: this command starts its own", address)
    Path(get_ray_address_file(None)).unlink(missing_ok=True)  # Ray Train's own processes would try it too
    return "local"


def _is_gone(address: str, refusal: UnusableAddress) -> bool:
    return refusal.absent and address.rpartition(":")[0] == ray.util.get_node_ip_address()


def _require_node(address: str) -> None:
    """Raises UserError if no raylet, which a driver needs, runs on this machine; ``ray.init`` would wait a minute for one."""
    deadline = time.monotonic() + NODE_SECONDS
    while not find_node_ids():
        if time.monotonic() > deadline:
            raise UserError(f"this machine is not a node of the Ray cluster at {address}: {ELSEWHERE}")
        time.sleep(0.2)


def check_cluster(config: Config, concurrent: int = 1) -> Resources:
    """Computes what a run reserves in the cluster that it shares with ``concurrent`` - 1 other such runs.

    If the run needs GPUs or a compiler (``train.compile``), a task on a machine of the cluster looks for them. Raises
    UserError if the cluster lacks what the run needs.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    machines = [(node["Resources"], node.get("Labels", {})) for node in alive]
    resources = plan_resources_on_nodes(
        config, [Node(r.get("CPU", 0.0), r.get("GPU", 0.0), labels) for r, labels in machines], concurrent
    )
    hardware = _ask_hardware(config, resources) if resources.gpu or config.train.compile == "inductor" else None
    if hardware is None:
        return resources
    from pipeline.hardware import check_hardware, is_on_gpu  # imports torch, which not every command on a cluster needs

    if resources.gpu and not is_on_gpu(config, hardware):
        raise UserError(
            f"Ray gives {resources.gpus_per_worker:g} GPU to each worker, but torch cannot use it: {hardware.problem}. Install "
            "the driver, or a torch for CUDA, on the nodes; scale.gpu=false computes on CPUs"
        )
    check_hardware(config, hardware, resources.gpu)
    return replace(resources, hardware=hardware)


def _ask_hardware(config: Config, resources: Resources) -> Hardware | None:
    """Reads the hardware of a machine that workers may run on.

    Returns None if all GPUs stay busy for ``scale.start_timeout_seconds``; the workers, which wait for them too, check again.
    """
    from pipeline.hardware import read_hardware

    ask = ray.remote(read_hardware).options(
        num_cpus=0, num_gpus=resources.worker.get("GPU", 0), label_selector=resources.train_labels or None
    )
    asked = ask.remote()
    try:
        hardware: Hardware = ray.get(asked, timeout=config.scale.start_timeout_seconds)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked)
        return None
    return hardware
