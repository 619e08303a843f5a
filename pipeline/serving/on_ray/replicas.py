"""Copies of a model in processes of a Ray cluster, and who sends them uploads.

Uploads do not go through Ray Serve's own HTTP proxy: it reads bodies into memory as fast as they come, of requests that wait,
too. With ray 2.60 it grew by 1,350 MiB during an upload of 1,500 MiB that no replica read. Here the web server of
``http_server`` receives uploads into files, and replicas get whole files of limited size.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve

from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.model.answers import Answer, RequestOptions
from pipeline.serving.model.served_model import ModelIdentity, ServedModel
from pipeline.serving.requests.limits import Limits, Refusal, make_too_late_refusal
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web.access import TOKEN_VARIABLE

ONGOING = 16
"""Requests that a replica has at the same time, so that there is something to score together."""
SENT_BYTES = 2**30
"""Bytes of uploads that are on their way to replicas at the same time, at most."""
ATTEMPTS = 3
"""How often a request is sent: its replica may be killed, and it costs nothing to ask another one."""
READY_SECONDS = 2.0
"""How long the state of the replicas is believed."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Logging of Ray Serve's own processes. It has no line for each request, because ``/metrics`` counts them."""
MODEL = "model"
"""Name of the deployment of replicas."""


class Replica:
    """One copy of the model, in a process of the cluster."""

    def __init__(self, saved: SavedRun, limits: Limits, identity: ModelIdentity, scratch: Path | None) -> None:
        """``identity`` is that of the model when the server was started, which this copy must have. ``scratch`` is where the
        folder for uploads is made on this machine; None: in the system's temporary folder."""
        os.environ.pop(TOKEN_VARIABLE, None)  # of a cluster's environment: no process that decodes is to have it
        self.model = ServedModel(saved, limits, identity=identity)
        self._scratch = Scratch.make("actnetformer-replica-", scratch)
        self._threads = ThreadPoolExecutor(ONGOING, thread_name_prefix="answer")

    async def answer(self, content: bytes, options: RequestOptions, seconds: float) -> Answer | Refusal:
        """Predicts the content of an uploaded file within ``seconds``. Returns a Refusal, which Ray would else wrap and log
        with a traceback."""
        deadline = time.monotonic() + seconds
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, content, options, deadline)

    def _answer(self, content: bytes, options: RequestOptions, deadline: float) -> Answer | Refusal:
        try:
            with self._scratch.make_upload_folder() as folder:
                path = Path(folder) / "upload"
                with self._scratch.refuse_errors():
                    path.write_bytes(content)
                return self.model.answer(path, options, deadline)
        except Refusal as refusal:
            return refusal

    def __del__(self) -> None:
        """Ends its processes and removes its folder; Ray Serve calls this when it ends a replica."""
        with contextlib.suppress(AttributeError):  # it did not start
            self._scratch.remove()
            self.model.stop()


class OnRay:
    """Answers by the replicas of an application of Ray Serve."""

    def __init__(self, handle: Any, application: str, identity: ModelIdentity, labels: tuple[str, ...], limits: Limits) -> None:
        self.handle, self.application, self.limits = handle, application, limits
        self.facts, self.labels = identity.facts, labels
        self._sending = asyncio.Semaphore(max(1, SENT_BYTES // limits.upload_bytes))
        self._is_ready, self._ready_until = False, 0.0

    async def answer(self, path: Path, options: RequestOptions) -> Answer:
        """Sends a file to a replica, or to another one if that is lost meanwhile. A request that is too late is withdrawn, so
        that no replica works for nobody."""
        deadline = time.monotonic() + self.limits.request_seconds
        try:
            async with asyncio.timeout(self.limits.request_seconds), self._sending:
                result = await self._ask(await asyncio.to_thread(path.read_bytes), options, deadline)
        except TimeoutError:
            raise make_too_late_refusal(self.limits) from None
        if isinstance(result, Refusal):
            raise result
        assert isinstance(result, Answer)
        return result

    async def _ask(self, content: bytes, options: RequestOptions, deadline: float) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            response = self.handle.answer.remote(content, options, deadline - time.monotonic())
            try:
                return await response
            except (ray.exceptions.RayActorError, serve.exceptions.DeploymentUnavailableError) as error:
                if attempt == ATTEMPTS:
                    text = "the process that computed the answer was lost; the request may be sent again"
                    raise Refusal(503, "replica_lost", text, retry_after=5) from error
            except asyncio.CancelledError:
                response.cancel()
                raise

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


def bind_replicas(
    saved: SavedRun,
    replicas: int,
    limits: Limits,
    identity: ModelIdentity,
    scratch: Path | None,
    resources: Mapping[str, float],
) -> Any:
    """Returns the application of Ray Serve that has ``replicas`` copies of the model, each with the reserved ``resources``."""
    deployment = serve.deployment(
        name=MODEL, num_replicas=replicas, max_ongoing_requests=ONGOING, max_queued_requests=-1,
        graceful_shutdown_timeout_s=limits.request_seconds, graceful_shutdown_wait_loop_s=0.1,
        logging_config=LOGGING, ray_actor_options=dict(resources),
    )  # fmt: skip
    return deployment(Replica).bind(saved, limits, identity, scratch)
