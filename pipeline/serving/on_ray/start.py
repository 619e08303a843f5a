"""Starts replicas for a command that waits for them, and ends them with it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve

from pipeline.errors import UserError
from pipeline.ray_cluster.connect import connect, is_reachable
from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.model.served_model import identify_model
from pipeline.serving.on_ray.placement import find_lack, plan_replica
from pipeline.serving.on_ray.replicas import LOGGING, OnRay, bind_replicas
from pipeline.serving.requests.limits import Limits

POLL_SECONDS = 0.5
"""Time between two looks at replicas that start."""
_log = logging.getLogger(__name__)


@contextmanager
def open_replicas(saved: SavedRun, replicas: int, limits: Limits, scratch: Path | None = None) -> Iterator[Answerer]:
    """Joins or starts a cluster and runs replicas there until the block ends. Raises UserError if they do not start.

    A cluster that was joined may get more machines: the replicas have ``scale.start_timeout_seconds`` for there to be room,
    and twice as long to run.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    has_joined = is_reachable()
    connect()
    identity = identify_model(saved)
    resources = plan_replica(saved.config, replicas, ray.cluster_resources(), may_grow=has_joined)
    # no other server has this name: Ray Serve would replace the one that has it by this application
    application = f"actnetformer-{uuid.uuid4().hex[:12]}"
    bound = bind_replicas(saved, replicas, limits, identity, scratch, resources)
    serve.start(proxy_location="Disabled", logging_config=LOGGING)
    try:
        target = serve.RunTarget(bound, application, route_prefix=None, logging_config=LOGGING)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        _wait_for_replicas(saved, replicas, application)
        yield OnRay(handle, application, identity, saved.classes, limits)
    finally:
        serve.delete(application)
        if has_joined and not serve.status().applications:  # a Ray of our own ends with this process
            serve.shutdown()


def _wait_for_replicas(saved: SavedRun, replicas: int, application: str) -> None:
    """Waits until all replicas run. Raises UserError if one fails to start, or if it takes too long."""
    begun, room_seconds, told = time.monotonic(), saved.config.scale.start_timeout_seconds, ""
    while (found := serve.status().applications[application]).status != "RUNNING":
        if found.status == "DEPLOY_FAILED":
            reasons = [one.message for one in found.deployments.values() if one.message] or [found.message]
            raise UserError(f"the replicas do not start: {reasons[0].strip().splitlines()[-1]}; they read {saved.weights}, "
                            "which all machines of the cluster must see")  # fmt: skip
        lack = find_lack(saved.config, replicas, ray.cluster_resources())
        seconds = room_seconds if lack else 3 * room_seconds
        if time.monotonic() > begun + seconds:
            why = lack or "its machines are busy with other work, or the model is slow to load"
            raise UserError(f"the replicas do not run after {seconds:g} s: {why}; a larger scale.start_timeout_seconds "
                            "waits longer")  # fmt: skip
        if lack and not told:
            told = lack
            _log.warning("%s; waiting for machines for up to %g s (scale.start_timeout_seconds)", lack, room_seconds)
        time.sleep(POLL_SECONDS)
