"""What a cluster's service, the GCS, answers to whoever asks whether it can be joined: that it can, or why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import ray
from ray.core.generated.gcs_service_pb2 import CheckAliveReply
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceServicer, add_NodeInfoGcsServiceServicer_to_server


class Gcs(NodeInfoGcsServiceServicer):
    """Answers as a cluster's service does, or refuses."""

    def __init__(self, version: str = ray.__version__, refuse: grpc.StatusCode | None = None) -> None:
        self.version, self.refuse = version, refuse

    def CheckAlive(self, request: object, context: grpc.ServicerContext) -> CheckAliveReply:  # noqa: N802
        if self.refuse is not None:
            context.abort(self.refuse, "InvalidAuthToken")
        return CheckAliveReply(ray_version=self.version)


@contextmanager
def serve_gcs(service: Gcs | None, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """Runs a gRPC server, without any service for None, and with TLS where there are credentials; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    if service is not None:
        add_NodeInfoGcsServiceServicer_to_server(service, server)
    place = "0.0.0.0:0"  # Ray asks this machine by the address of its network
    port = server.add_insecure_port(place) if credentials is None else server.add_secure_port(place, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
