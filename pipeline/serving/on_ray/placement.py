"""What a copy of the model reserves on a cluster, and what the cluster lacks."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Config
from pipeline.errors import UserError


def plan_replica(config: Config, replicas: int, cluster: Mapping[str, float], may_grow: bool = False) -> dict[str, float]:
    """Plans what Ray reserves for each replica: up to 1 CPU, and a GPU if there are enough and ``scale.gpu`` does not forbid
    it.

    Where the cluster has too little, each replica is to have what it would have on a large one if the cluster ``may_grow``:
    Ray Serve starts them as machines come. Else it raises UserError.
    """
    scale, gpus = config.scale, cluster.get("GPU", 0.0)
    use_gpu = gpus >= replicas * scale.gpus_per_worker if scale.gpu is None else scale.gpu
    gpu = {"num_gpus": scale.gpus_per_worker} if use_gpu else {}
    lack = find_lack(config, replicas, cluster)
    if lack and not may_grow:
        raise UserError(lack)
    return {"num_cpus": scale.cpus_per_worker or (1.0 if lack else _share_cpus(replicas, cluster)), **gpu}


def plan_replica_anywhere(config: Config) -> dict[str, float]:
    """Plans what Ray reserves for each replica on a cluster whose machines may all be still to come, as those of KubeRay are.

    Raises UserError if ``scale.gpu`` does not say whether they will have GPUs.
    """
    if config.scale.gpu is None:
        raise UserError("say scale.gpu=true or scale.gpu=false: the machines of this cluster may not be there yet, so that "
                        "nobody can see whether they have GPUs")  # fmt: skip
    return plan_replica(config, 1, {}, may_grow=True)


def find_lack(config: Config, replicas: int, cluster: Mapping[str, float]) -> str:
    """Says what a cluster lacks for so many replicas, with the remedy; "" if they fit."""
    scale, cpus, gpus = config.scale, cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    wanted = replicas * scale.gpus_per_worker
    if scale.gpu and gpus < wanted:
        return (f"--replicas {replicas} with scale.gpu=true needs {wanted:g} GPUs, the cluster has {gpus:g}: "
                "lower --replicas, add machines, or compute on CPUs with scale.gpu=false")  # fmt: skip
    each = scale.cpus_per_worker or _share_cpus(replicas, cluster)
    if each < 0.1 or each * replicas > cpus:
        return f"--replicas {replicas} needs more CPUs than the cluster's {cpus:g}: lower it, or add machines"
    return ""


def _share_cpus(replicas: int, cluster: Mapping[str, float]) -> float:
    return min(1.0, int(80 * cluster.get("CPU", 0.0) / replicas) / 100)
