"""Asks the dashboard of a Ray cluster: which nodes and jobs there are, what a job logs; and sends it jobs, and stops them.

The dashboard is the web server of a cluster's head. It can be reached from machines that are not nodes of the cluster, and it
is a part of ``ray[default]``. Ray's own client has no time limits, so requests that may be repeated are made with one here.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from pipeline.errors import UserError
from pipeline.ray_cluster.address import DASHBOARD_PORT, TOKEN_REMEDY

DEFAULT_ADDRESS = f"http://127.0.0.1:{DASHBOARD_PORT}"
MEANT = f"for example --address http://HEAD:{DASHBOARD_PORT}, where HEAD is the address of the cluster's head node"
DRIVER_PORTS = (6379, 10001)
"""Ports that drivers connect to (GCS and Ray Client), which are often mistaken for the dashboard's."""
NOISY = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
"""Ray's loggers that tell every ignore file, folder left out, upload and socket."""
CONNECT_SECONDS = 10.0
"""Time limit for a dashboard to answer."""


class ConnectionLost(Exception):
    """The dashboard did not answer in time, or its connection broke; the text is the reason. It may answer again later."""


class Cluster(Protocol):
    """What the commands ask of a cluster. ``Dashboard`` asks a real one; tests write what it answers."""

    address: str

    def read(self, path: str) -> Any:
        """Reads what the dashboard answers at ``path``, as parsed JSON. Raises ConnectionLost, KeyError for what it does not
        know, and UserError for a wrong token."""

    def tail_log(self, job: str) -> AsyncIterator[str]:
        """Yields pieces of a job's log, from its beginning, until the job ends. Raises OSError or RuntimeError if the
        connection breaks."""

    def stop_job(self, job: str) -> None:
        """Asks Ray to stop a submitted job. Returns before it has stopped."""


class Dashboard:
    """The dashboard of a real cluster."""

    def __init__(self, address: str) -> None:
        """Connects within seconds. Raises UserError if no cluster answers, for a wrong token and for another Ray version."""
        self.address = address
        self.client = _connect_client(address)

    def read(self, path: str) -> Any:
        """Reads what the dashboard answers at ``path``; see ``Cluster``."""
        try:
            reply = self.client._do_request("GET", path, timeout=CONNECT_SECONDS)
        except AuthenticationError as error:
            raise _make_token_error(self.address, error) from None
        except OSError as error:  # what requests raises is one
            raise ConnectionLost(_find_reason(error)) from None
        if reply.status_code == 404:
            raise KeyError(path)
        if reply.status_code != 200:
            raise ConnectionLost(f"it answers {reply.status_code}")
        return reply.json()

    def tail_log(self, job: str) -> AsyncIterator[str]:
        """Yields pieces of a job's log; see ``Cluster``."""
        pieces: AsyncIterator[str] = self.client.tail_job_logs(job)
        return pieces

    def stop_job(self, job: str) -> None:
        """Asks Ray to stop a submitted job; see ``Cluster``."""
        self.client.stop_job(job)


def read_job(cluster: Cluster, job: str) -> JobDetails:
    """Reads what the cluster knows about a job. Raises KeyError if it knows no such job, and the same as ``Cluster.read``."""
    return JobDetails(**cluster.read(f"/api/jobs/{quote(job, safe='')}"))


def find_dashboard_address(given: str | None, environ: Mapping[str, str]) -> str:
    """Returns the URL of the cluster's dashboard: ``--address``, else that of Ray's own variables, else this machine's.

    Raises UserError, with the URL that was probably meant, for what is not a URL of a web server.
    """
    named = {"--address": given, **{name: environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}}
    source, address = next(((name, said) for name, said in named.items() if said), ("", DEFAULT_ADDRESS))
    if address in ("auto", "local"):
        raise UserError(
            f"{source} {address} tells a command which cluster to join, but not where jobs are sent: give the dashboard's URL, "
            f"{MEANT}; on that node itself {DEFAULT_ADDRESS}"
        )
    scheme, separator, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host = parts.hostname
    except ValueError:  # brackets that hold no IPv6 address
        raise UserError(f"{source} {address} is not a URL; give the dashboard's, {MEANT}") from None
    try:
        port = parts.port
    except ValueError:
        raise UserError(f"{source} {address}: its port must be a number; give the dashboard's URL, {MEANT}") from None
    if separator and not host:
        raise UserError(f"{source} {address} names no host; give the dashboard's URL, {MEANT}")
    host = f"[{host}]" if ":" in (host or "") else host or "HEAD"
    if separator and scheme.lower() not in ("http", "https"):
        raise UserError(
            f"{source} {address} is not a dashboard's address, which jobs are sent to; give its URL, --address http://{host}:8265"
        )
    if not separator:
        likely = DASHBOARD_PORT if port in (None, *DRIVER_PORTS) else port
        drivers = f"names port {port}, where drivers join the cluster; jobs are sent to its dashboard"
        about = drivers if port in DRIVER_PORTS else "is not a URL"
        raise UserError(f"{source} {address} {about}: give --address http://{host}:{likely}")
    return address.rstrip("/")


def _connect_client(address: str) -> JobSubmissionClient:
    missing = [name for name in ("aiohttp", "requests") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"Ray's client of clusters needs {' and '.join(missing)}: pip install 'ray[default]'")
    _require_answer(address)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray takes its variables before the argument ``address``
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise _make_token_error(address, error) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{address} is not the dashboard of a Ray cluster: {error}") from None
    check_version(address, client._server_ray_version)
    return client


def check_version(address: str, version: str | None) -> None:
    """Raises UserError unless the cluster has this environment's version of Ray."""
    if version != ray.__version__:
        raise UserError(
            f"the Ray of the cluster at {address} is {version}, this environment's is {ray.__version__}: use the same version "
            "on both sides"
        )


def _make_token_error(address: str, error: AuthenticationError) -> UserError:
    return UserError(f"the cluster at {address} refused the token ({error.message.splitlines()[0]}); {TOKEN_REMEDY}")


def _require_answer(address: str) -> None:
    """Raises UserError if nothing answers at the address: Ray's own client has no time limit and would wait forever."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers; the client tells a wrong token from a wrong server
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"no Ray cluster answers at {address} within {CONNECT_SECONDS:g} s ({_find_reason(error)}); give --address "
            f"http://HEAD:{DASHBOARD_PORT}, the dashboard's address, and forward the port when the cluster is remote (see "
            "cluster/README.md)"
        ) from None


def _find_reason(error: Exception) -> str:
    """Finds the cause in an exception of urllib or requests: ``connection refused``, without the objects around it."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    reason = str(getattr(error, "reason", error)).strip()
    return reason if reason.isprintable() else "what answers is not a web server"
