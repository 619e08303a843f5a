"""The web server as a process of the cluster, for applications of Ray Serve that no command of ours waits for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import serve

from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.model.served_model import ModelIdentity, identify_model
from pipeline.serving.on_ray.placement import plan_replica_anywhere
from pipeline.serving.on_ray.replicas import LOGGING, OnRay, bind_replicas
from pipeline.serving.requests.limits import Limits
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web.access import TOKEN_VARIABLE
from pipeline.serving.web.app import WebApplication
from pipeline.serving.web.http_server import make_server, open_socket
from pipeline.serving.web.service import compute_stop_seconds

BuildApplication = Callable[[Answerer, Scratch], WebApplication]
"""Makes the web application from who answers and from a folder for uploads."""


class WebServer:
    """A web server in a thread, which ends when Ray Serve ends this process, after the requests that it has."""

    def __init__(
        self,
        handle: Any,
        identity: ModelIdentity,
        labels: tuple[str, ...],
        limits: Limits,
        address: tuple[str, int],
        scratch: Path | None,
        build: BuildApplication,
    ) -> None:
        """``address`` is the host and the port to listen on; ``scratch`` is as in ``Replica``."""
        os.environ.pop(TOKEN_VARIABLE, None)
        application = serve.get_replica_context().app_name
        self._socket = open_socket(*address)
        self._scratch = Scratch.make("actnetformer-serve-", scratch)
        self._server = make_server(build(OnRay(handle, application, identity, labels, limits), self._scratch))
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
        self._scratch.remove()

    def __del__(self) -> None:
        """Ray Serve calls this, and nothing else, when it ends the process."""
        with contextlib.suppress(AttributeError):  # it did not start
            self.stop()


def bind_web_server(
    saved: SavedRun, replicas: int, limits: Limits, address: tuple[str, int], scratch: Path | None, build: BuildApplication
) -> Any:
    """Returns the application of Ray Serve that has the replicas and, in a process of its own, the web server.

    Ray Serve places them, as the cluster's machines come. Raises UserError as ``plan_replica_anywhere`` does.
    """
    identity = identify_model(saved)
    model = bind_replicas(saved, replicas, limits, identity, scratch, plan_replica_anywhere(saved.config))
    deployment = serve.deployment(
        name="web", num_replicas=1, ray_actor_options={"num_cpus": 0.1}, logging_config=LOGGING,
        graceful_shutdown_timeout_s=compute_stop_seconds(limits), graceful_shutdown_wait_loop_s=0.1,
    )  # fmt: skip
    return deployment(WebServer).bind(model, identity, saved.classes, limits, address, scratch, build)
