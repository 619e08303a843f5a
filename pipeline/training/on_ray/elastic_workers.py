"""Decides how many workers an elastic run (``scale.min_workers``) has, in place of Ray's own policy.

Ray 2.60 asks its coordinator of autoscaling, which looks at no labels: a machine that may not train
(``scale.train_labels``) counts as room for workers, for which the run then waits in vain. It also knows nothing of the decode
task that every run needs.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ScalingPolicy

from pipeline.ray_cluster.resources import Node, Resources, count_workers

OWN_CLUSTER = "RAY_API_SERVER_ADDRESS"
"""The variable by which Ray's state API finds its cluster; without it, it looks at the processes of this machine."""


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer whose number of workers is decided here if it may change."""

    def __init__(self, *args: Any, resources: Resources, **words: Any) -> None:
        super().__init__(*args, **words)
        self._resources = resources

    def _initialize_and_run_controller(self, *, scaling_policy: ScalingPolicy, **words: Any) -> Any:
        if isinstance(scaling_policy, ElasticScalingPolicy):
            scaling_policy = FittingWorkers(self.scaling_config, self._resources)
        with name_own_cluster():
            return super()._initialize_and_run_controller(scaling_policy=scaling_policy, **words)


@contextlib.contextmanager
def name_own_cluster() -> Iterator[None]:
    """Has Ray Train tell the controller, and what it starts, which cluster they belong to, by a variable of the environment.

    The controller's helper that gives back what a killed controller held asks the cluster of this machine, and ends with a
    traceback if there are two: another command of the same user is enough.
    """
    ENV_VARS_TO_PROPAGATE.add(OWN_CLUSTER)
    before = os.environ.get(OWN_CLUSTER)
    os.environ[OWN_CLUSTER] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ[OWN_CLUSTER]
        else:
            os.environ[OWN_CLUSTER] = before


class FittingWorkers(ElasticScalingPolicy):  # type: ignore[misc]
    """As many workers as fit on the machines that may train, beside a decode task. Machines that an autoscaler could add are
    asked for as Ray's own policy does."""

    def __init__(self, scaling_config: ScalingConfig, resources: Resources) -> None:
        super().__init__(scaling_config)
        self._resources = resources

    def _get_reserved_resources(self) -> list[Node]:
        return read_free_nodes()

    def _count_possible_workers(self, reserved_resources: list[Node]) -> int:
        return count_workers(reserved_resources, self._resources, self.scaling_config.max_workers)


def read_free_nodes() -> list[Node]:
    """Reads what the cluster's machines have, without what placement groups of other jobs of the cluster hold.

    Those of this job are taken for this run's workers, whose places are to be given out again. So they are in ``jobs.train``;
    the trials of one study are one job, and each of them that is elastic counts the others' places as free.
    """
    held: dict[str, Counter[str]] = {}
    own = ray.get_runtime_context().get_job_id()
    for record in ray_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.state == PlacementGroupTableData.CREATED and group.creator_job_id.hex() != own:
            for bundle in group.bundles:
                held.setdefault(bundle.node_id.hex(), Counter()).update(bundle.unit_resources)
    alive = [(node["Resources"], held.get(node["NodeID"], Counter()), node) for node in ray.nodes() if node["Alive"]]
    return [
        Node(total.get("CPU", 0) - taken["CPU"], total.get("GPU", 0) - taken["GPU"], node.get("Labels", {}))
        for total, taken, node in alive
    ]
