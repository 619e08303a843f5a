"""The address of a Ray cluster: whether it is one, and whether a cluster answers there, both told within seconds.

``ray.init`` itself tries for minutes where something else listens or where a host does not answer, and answers a wrong form of
address with a traceback.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from pipeline.errors import UserError

VARIABLE = "RAY_ADDRESS"
GCS_PORT = 6379
"""Of Ray's cluster service, unless ``ray start --port`` said another."""
DASHBOARD_PORT = 8265
"""Of the web server that jobs are sent to, unless ``ray start --dashboard-port`` said another."""
ANSWER_SECONDS = 5.0
"""For the host's name, its connection and its answer together."""
TOKEN_REMEDY = "give the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
UNSET = f"unset {VARIABLE} to use this machine"


@dataclass(frozen=True)
class Refusal:
    """Why no cluster can be joined at an address."""

    reason: str
    absent: bool
    """Nobody listens there, or what listens is certainly no cluster; otherwise there may be one that is slow or far away."""
    wants_token: bool = False
    remedy: str = f"{UNSET}, or start the cluster and name its GCS, HOST:{GCS_PORT} by default"


def named() -> str | None:
    """What RAY_ADDRESS says; None if it is not set or empty."""
    return os.environ.get(VARIABLE) or None


def check_form(address: str) -> None:
    """Raises UserError, with the remedy, for what is not HOST:PORT, [IPv6]:PORT, ``auto`` or ``local``."""
    if address in ("auto", "local"):
        return
    said = f"{VARIABLE}={address}"
    scheme, separator, rest = address.partition("://")
    if separator:
        raise UserError(f"{said} {_about_url(scheme.lower(), rest)}")
    host, colon, port = address.rpartition(":")
    if not colon or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        example = f"{address if re.fullmatch(r'[A-Za-z0-9._-]+', address) else 'HOST'}:{GCS_PORT}"
        raise UserError(f"{said} must be HOST:PORT of the cluster's GCS, as `ray start` takes it: {example}; or {UNSET}")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise UserError(f"{said}: port {port!r} is no number from 1 to 65535; write {host}:{GCS_PORT}, or {UNSET}")


def _about_url(scheme: str, rest: str) -> str:
    """What is wrong with a URL, and the remedy; what it does not name, or not in a form that can be read, is HEAD or 8265."""
    named, has_port = _host_and_port(rest)
    host = named or "HEAD"
    meant = ", HEAD being the address of the head node" if named is None else ""
    join = f"{VARIABLE}={host}:{GCS_PORT} on a machine of the cluster{meant}, or {UNSET}"
    if scheme in ("http", "https"):
        dashboard = f"{scheme}://{rest}" if named and has_port else f"{scheme}://{host}:{DASHBOARD_PORT}"
        return (
            f"is the form of a dashboard's address, which `ray job submit` and jobs.submit use: write python -m jobs.submit "
            f"--address {dashboard} COMMAND, or {join}"
        )
    if scheme == "ray":
        return (
            "is an address of Ray Client, which a command cannot use, because its run folder and data stream belong on the "
            f"cluster: write python -m jobs.submit --address http://{host}:{DASHBOARD_PORT} COMMAND, or {join}"
        )
    return f"is no address of a Ray cluster: write {join}"


def _host_and_port(rest: str) -> tuple[str | None, bool]:
    """The host of ``HOST[:PORT][/...]`` as URLs write it, None if there is none; and whether its port, if any, is one."""
    try:
        parts = urlsplit(f"//{rest}")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    except ValueError:  # brackets that hold no IPv6 address
        return None, False
    try:
        return host, parts.port != 0
    except ValueError:
        return host, False


def refusal(address: str) -> Refusal | None:
    """Asks the cluster service at HOST:PORT whether it is one, at most ``ANSWER_SECONDS``; None if it is."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    channel = init_grpc_channel(address, options)
    try:
        reply = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        return _understood(error.code(), error.details() or "")
    finally:
        channel.close()
    if reply.ray_version and reply.ray_version != ray.__version__:
        reason = f"its Ray is {reply.ray_version}, this environment's is {ray.__version__}"
        return Refusal(reason, absent=False, remedy=f"use the same version on both sides, or {UNSET}")
    return None


def _understood(code: grpc.StatusCode, details: str) -> Refusal:
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Refusal(f"no answer within {ANSWER_SECONDS:g} s", absent=False)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return Refusal("it wants a token, or another one", absent=False, wants_token=True, remedy=TOKEN_REMEDY)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return Refusal("what listens there is another service, not a cluster's GCS", absent=True)
    if "Connection refused" in details:
        return Refusal("connection refused: nobody listens there", absent=True)
    if "DNS" in details or "Domain name" in details or "resolve" in details.lower():
        return Refusal("the host's name is unknown here", absent=False)
    if any(word in details for word in ("unreachable", "No route", "timed out", "Timeout")):
        return Refusal(f"the host is not reachable: {details.rpartition(': ')[2]}", absent=False)
    return Refusal("what listens there does not speak Ray's protocol", absent=True)
