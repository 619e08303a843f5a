"""Copies of a model on a Ray cluster, by Ray Serve, which starts, watches and replaces them, and spreads requests over them.

Uploads do not go through Ray Serve's own HTTP proxy: it reads bodies into memory as fast as they come, of requests that wait,
too. With ray 2.60 it grew by 1,350 MiB during an upload of 1,500 MiB that no replica read. Here the web server of
``http_server`` receives uploads into files, and replicas get whole files of limited size.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.lifecycle.saved_run import SavedRun
from pipeline.ray_cluster.connect import connect, is_reachable
from pipeline.serving.access import ASGI
from pipeline.serving.answerer import Answerer
from pipeline.serving.answers import Answer, Wanted
from pipeline.serving.http_server import make_server, open_socket
from pipeline.serving.limits import Limits, Refusal
from pipeline.serving.served_model import ServedModel, describe_model

ONGOING = 16
"""Requests that a replica has at the same time, so that there is something to score together."""
SENT_BYTES = 2**30
"""Bytes of uploads that are on their way to replicas at the same time, at most."""
ATTEMPTS = 3
"""How often a request is sent: its replica may be killed, and it costs nothing to ask another one."""
READY_SECONDS = 2.0
"""How long the state of the replicas is believed."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Of Ray Serve's own processes: requests are counted by ``/metrics``."""
MODEL = "model"
"""Name of the deployment of replicas."""


class Replica:
    """One copy of the model, in a process of the cluster."""

    def __init__(self, saved: SavedRun, limits: Limits) -> None:
        self.model = ServedModel(saved, limits)
        self._threads = ThreadPoolExecutor(ONGOING, thread_name_prefix="answer")

    async def answer(self, content: bytes, wanted: Wanted) -> Answer | Refusal:
        """Predicts the content of an uploaded file. Returns a Refusal, which Ray would else wrap and log with a traceback."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, content, wanted)

    def _answer(self, content: bytes, wanted: Wanted) -> Answer | Refusal:
        with tempfile.TemporaryDirectory(prefix="actnetformer-replica-") as folder:
            path = Path(folder) / "upload"
            path.write_bytes(content)
            try:
                return self.model.answer(path, wanted)
            except Refusal as refusal:
                return refusal


class OnRay:
    """Answers by the replicas of an application of Ray Serve."""

    def __init__(self, handle: Any, application: str, saved: SavedRun, limits: Limits) -> None:
        self.handle, self.application = handle, application
        self.facts, self.labels = describe_model(saved), saved.classes
        self._sending = asyncio.Semaphore(max(1, SENT_BYTES // limits.upload_bytes))
        self._is_ready, self._ready_until = False, 0.0

    async def answer(self, path: Path, wanted: Wanted) -> Answer:
        """Sends a file to a replica, or to another one if that is lost meanwhile."""
        async with self._sending:
            content = await asyncio.to_thread(path.read_bytes)
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    result = await self.handle.answer.remote(content, wanted)
                    break
                except (ray.exceptions.RayActorError, serve.exceptions.DeploymentUnavailableError) as error:
                    if attempt == ATTEMPTS:
                        text = "the process that computed the answer was lost; the request may be sent again"
                        raise Refusal(503, "replica_lost", text, retry_after=5) from error
        if isinstance(result, Refusal):
            raise result
        assert isinstance(result, Answer)
        return result

    async def is_ready(self) -> bool:
        """Whether a replica is there and healthy, as Ray Serve knows it."""
        if time.monotonic() > self._ready_until:
            self._is_ready = await asyncio.to_thread(count_replicas, self.application) > 0
            self._ready_until = time.monotonic() + READY_SECONDS
        return self._is_ready


def count_replicas(application: str) -> int:
    """Counts the replicas of the model that run."""
    found = serve.status().applications.get(application)
    deployment = found.deployments.get(MODEL) if found else None
    states = deployment.replica_states if deployment else {}
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


def bind_replicas(saved: SavedRun, replicas: int, limits: Limits) -> Any:
    """Returns the application of Ray Serve that has ``replicas`` copies of the model. Raises UserError if they do not fit."""
    options = serve.deployment(
        name=MODEL, num_replicas=replicas, max_ongoing_requests=ONGOING, max_queued_requests=-1, graceful_shutdown_timeout_s=5,
        logging_config=LOGGING,
        ray_actor_options=plan_replica(saved.config, replicas, ray.cluster_resources()),
    )  # fmt: skip
    return options(Replica).bind(saved, limits)


def plan_replica(config: Config, replicas: int, cluster: dict[str, float]) -> dict[str, float]:
    """Plans what Ray reserves for each replica: up to 1 CPU, and a GPU if there are enough and ``scale.gpu`` does not forbid
    it. Raises UserError if the cluster has too little."""
    scale, cpus, gpus = config.scale, cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    wanted = replicas * scale.gpus_per_worker
    if scale.gpu and gpus < wanted:
        raise UserError(f"--replicas {replicas} with scale.gpu=true needs {wanted:g} GPUs, the cluster has {gpus:g}: "
                        "lower --replicas, or compute on CPUs with scale.gpu=false")  # fmt: skip
    use_gpu = gpus >= wanted if scale.gpu is None else scale.gpu
    each = scale.cpus_per_worker or min(1.0, int(80 * cpus / replicas) / 100)
    if each < 0.1 or each * replicas > cpus:
        raise UserError(f"--replicas {replicas} needs more CPUs than the cluster's {cpus:g}: lower it, or add machines")
    return {"num_cpus": each, **({"num_gpus": scale.gpus_per_worker} if use_gpu else {})}


@contextmanager
def open_replicas(saved: SavedRun, replicas: int, limits: Limits) -> Iterator[Answerer]:
    """Joins or starts a cluster and runs replicas there until the block ends. Raises UserError if they do not start."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    has_joined = is_reachable()
    connect()
    application = f"actnetformer-{os.getpid()}"
    bound = bind_replicas(saved, replicas, limits)
    serve.start(proxy_location="Disabled", logging_config=LOGGING)
    try:
        try:
            handle = serve.run(bound, name=application, route_prefix=None, logging_config=LOGGING)
        except RuntimeError as error:
            raise UserError(f"the replicas do not start: {str(error).splitlines()[-1]}; they read {saved.weights}, which all "
                            "machines of the cluster must see") from error  # fmt: skip
        yield OnRay(handle, application, saved, limits)
    finally:
        serve.delete(application)
        if has_joined and not serve.status().applications:  # a Ray of our own ends with this process
            serve.shutdown()


class WebServer:
    """The web server as a process of the cluster, for Ray Serve applications that no command of ours waits for."""

    def __init__(
        self, handle: Any, saved: SavedRun, limits: Limits, host: str, port: int, build: Callable[[Answerer, Path], ASGI]
    ) -> None:
        """``build`` makes the web application from who answers and from a folder for uploads."""
        application = serve.get_replica_context().app_name
        self._scratch = tempfile.TemporaryDirectory(prefix="actnetformer-serve-")
        self._server = make_server(build(OnRay(handle, application, saved, limits), Path(self._scratch.name)))
        self._socket = open_socket(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Raises RuntimeError if the web server has ended, so that Ray Serve replaces this process."""
        if not self._thread.is_alive():
            raise RuntimeError("the web server has ended")

    def stop(self) -> None:
        """Ends it after the requests that it has begun to answer."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._scratch.cleanup()


def bind_web_server(
    saved: SavedRun, replicas: int, limits: Limits, host: str, port: int, build: Callable[[Answerer, Path], ASGI]
) -> Any:
    """Returns the application of Ray Serve that has the replicas and, in a process of its own, the web server."""
    deployment = serve.deployment(name="web", num_replicas=1, ray_actor_options={"num_cpus": 0.1}, logging_config=LOGGING)
    return deployment(WebServer).bind(bind_replicas(saved, replicas, limits), saved, limits, host, port, build)
