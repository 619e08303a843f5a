"""Checks the address of a Ray cluster within seconds: whether it is well formed, and whether a cluster can be reached there.

``ray.init`` itself tries for minutes if a host does not reply or something other than Ray listens there, and for a malformed
address it prints a traceback.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
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
"""The port of the GCS, Ray's cluster service, unless ``ray start --port`` sets another."""
DASHBOARD_PORT = 8265
"""The port of the dashboard, the web server that jobs are sent to, unless ``ray start --dashboard-port`` sets another."""
ANSWER_SECONDS = 5.0
"""The time limit for finding the host, connecting to it and its reply together."""
TOKEN_REMEDY = "give the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
TLS_REMEDY = (
    "set RAY_USE_TLS=1 and, to the files that the cluster's authority made for this machine, RAY_TLS_SERVER_CERT, "
    "RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT (see cluster/README.md)"
)
UNSET = f"unset {VARIABLE} to use this machine"


@dataclass(frozen=True)
class UnusableAddress:
    """An address at which no cluster can be joined, and why."""

    reason: str
    absent: bool
    """Whether there is certainly no cluster, because nothing or something else listens there; otherwise one may be slow."""
    wants_token: bool = False
    remedy: str = f"{UNSET}, or start the cluster and name its GCS, HOST:{GCS_PORT} by default"


def read_ray_address() -> str | None:
    """Returns the value of the environment variable RAY_ADDRESS, or None if it is not set or empty."""
    return os.environ.get(VARIABLE) or None


def check_form(address: str) -> None:
    """Raises UserError, with the remedy, unless ``address`` is HOST:PORT, [IPv6]:PORT, ``auto`` or ``local``."""
    if address in ("auto", "local"):
        return
    setting = f"{VARIABLE}={address}"
    scheme, separator, rest = address.partition("://")
    if separator:
        raise UserError(f"{setting} {_explain_url(scheme.lower(), rest)}")
    host, colon, port = address.rpartition(":")
    if not colon or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        example = f"{address if re.fullmatch(r'[A-Za-z0-9._-]+', address) else 'HOST'}:{GCS_PORT}"
        raise UserError(f"{setting} must be HOST:PORT of the cluster's GCS, as `ray start` takes it: {example}; or {UNSET}")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise UserError(f"{setting}: port {port!r} is not a number from 1 to 65535; write {host}:{GCS_PORT}, or {UNSET}")


def _explain_url(scheme: str, rest: str) -> str:
    """Explains why a URL is not the address of a cluster, with the remedy. A missing host or port is shown as HEAD or 8265."""
    given_host, has_port = _split_host_and_port(rest)
    host = given_host or "HEAD"
    meant = ", HEAD being the address of the head node" if given_host is None else ""
    join = f"{VARIABLE}={host}:{GCS_PORT} on a machine of the cluster{meant}, or {UNSET}"
    if scheme in ("http", "https"):
        dashboard = f"{scheme}://{rest}" if given_host and has_port else f"{scheme}://{host}:{DASHBOARD_PORT}"
        return (
            f"is the form of a dashboard's address, which `ray job submit` and jobs.submit use: write python -m jobs.submit "
            f"--address {dashboard} COMMAND, or {join}"
        )
    if scheme == "ray":
        return (
            "is an address of Ray Client, which a command cannot use, because its run folder and data stream belong on the "
            f"cluster: write python -m jobs.submit --address http://{host}:{DASHBOARD_PORT} COMMAND, or {join}"
        )
    return f"is not an address of a Ray cluster: write {join}"


def _split_host_and_port(rest: str) -> tuple[str | None, bool]:
    """Returns the host of ``HOST[:PORT][/...]``, or None if there is none, and whether its port, if it has one, is valid."""
    try:
        parts = urlsplit(f"//{rest}")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    except ValueError:  # brackets that hold no IPv6 address
        return None, False
    try:
        return host, parts.port != 0
    except ValueError:
        return host, False


def find_refusal(address: str) -> UnusableAddress | None:
    """Asks for at most ``ANSWER_SECONDS`` whether a cluster can be joined at HOST:PORT. Returns why not, or None if it can."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    try:
        channel = init_grpc_channel(address, options)
    except (RuntimeError, OSError) as error:  # a variable is not set, or its file cannot be read
        return UnusableAddress(f"RAY_USE_TLS is set, but: {error}", absent=False, remedy=f"{TLS_REMEDY}, or unset RAY_USE_TLS")
    try:
        reply = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        return _explain_tls_error(details) or _explain_rpc_error(code, details, address)
    finally:
        channel.close()
    if reply.ray_version and reply.ray_version != ray.__version__:
        reason = f"its Ray is {reply.ray_version}, this environment's is {ray.__version__}"
        return UnusableAddress(reason, absent=False, remedy=f"use the same version on both sides, or {UNSET}")
    return None


def _explain_tls_error(details: str) -> UnusableAddress | None:
    """Explains why TLS, of which the one side or both have certificates, came to nothing; None if that was not the reason."""
    if "WRONG_VERSION_NUMBER" in details:
        return UnusableAddress(
            "RAY_USE_TLS is set, and what listens there speaks no TLS", absent=False, remedy="unset RAY_USE_TLS"
        )
    if "CERTIFICATE_VERIFY_FAILED" in details:
        reason = "its certificate is not of the authority in RAY_TLS_CA_CERT, or is no longer valid"
        return UnusableAddress(reason, absent=False, remedy=TLS_REMEDY)
    if "Hostname Verification Check failed" in details or "not in peer certificate" in details:
        remedy = "name the cluster by an address of its certificate, or make one with this address"
        return UnusableAddress("its certificate is for another address", absent=False, remedy=remedy)
    return None


def _explain_rpc_error(code: grpc.StatusCode, details: str, address: str) -> UnusableAddress:
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnusableAddress(f"no answer within {ANSWER_SECONDS:g} s", absent=False)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return UnusableAddress("it wants a token, or another one", absent=False, wants_token=True, remedy=TOKEN_REMEDY)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return UnusableAddress("what listens there is another service, not a cluster's GCS", absent=True)
    if "Connection refused" in details:
        return UnusableAddress("connection refused: nobody listens there", absent=True)
    if "DNS" in details or "Domain name" in details or "resolve" in details.lower():
        return UnusableAddress("the host's name is unknown here", absent=False)
    if any(word in details for word in ("unreachable", "No route", "timed out", "Timeout")):
        return UnusableAddress(f"the host is not reachable: {details.rpartition(': ')[2]}", absent=False)
    if _speaks_tls(address):
        has_own = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
        reason = (
            "it refuses this machine's certificate" if has_own else "it speaks TLS, and this command was given no certificate"
        )
        return UnusableAddress(reason, absent=False, remedy=TLS_REMEDY)
    return UnusableAddress("what listens there does not speak Ray's protocol", absent=True)


def _speaks_tls(address: str) -> bool:
    """Returns whether a server answers at HOST:PORT as TLS begins, whatever it thinks of a client without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent to it
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
