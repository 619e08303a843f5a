"""Runs a command of this project on a Ray cluster: ``python -m jobs.submit [options] COMMAND [ARGUMENTS]``.

The working directory is uploaded (less what .gitignore and .rayignore name), the command's log is shown as it comes,
and its exit code is passed on. Paths among the arguments are paths on the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import logging
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from jobs.__main__ import COMMANDS
from jobs.command import DONE, FAILED, INTERRUPTED, make_parser, run
from pipeline.config.text import parse_untyped, read_yaml
from pipeline.errors import UserError, suggest
from pipeline.ray_cluster.address import TOKEN_REMEDY

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
MEANT = "for example --address http://HEAD:8265, where HEAD is the address of the cluster's head node"
DRIVER_PORTS = (6379, 10001)
"""Ports that drivers connect to (GCS and Ray Client), which are often mistaken for the dashboard's."""
CONNECT_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Submits one command. Returns its exit code, or 0 at once with ``--no-wait``. Raises UserError for any mistake."""
    args = _parse_arguments(argv)
    command = build_entrypoint(args.command, args.arguments)
    environment = read_runtime_env(args.runtime_env, args.working_dir)
    address = find_dashboard_address(args.address, os.environ)
    client = connect_client(address)
    try:
        job = client.submit_job(entrypoint=command, runtime_env=environment)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the cluster at {address} did not take the job: {error}") from None
    print(f"job {job}: {command}\n{_describe_job_commands(address, job)}", flush=True)
    return DONE if args.no_wait else follow_job(client, address, job)


def build_entrypoint(command: str, arguments: Sequence[str]) -> str:
    """Builds the shell line that runs ``command`` on the cluster. Raises UserError for an unknown command, or this one."""
    allowed = [name for name in COMMANDS if name != "submit"]
    if command == "submit":
        raise UserError(f"submit cannot submit itself; give one of: {', '.join(allowed)}")
    if command not in allowed:
        remedy = suggest(command, allowed) or f"; give one of: {', '.join(allowed)}"
        raise UserError(f"unknown command {command}{remedy}")
    return shlex.join(["python", "-m", f"jobs.{command}", *arguments])


def read_runtime_env(file: str | None, working_dir: str) -> dict[str, Any]:
    """Reads Ray's runtime environment from the YAML ``file``, and adds the folder to upload.

    Raises UserError if the file is not a mapping or names a working_dir of its own, or if there is no such folder.
    """
    folder = Path(working_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"--working-dir {working_dir}: no such folder")
    written = read_yaml(Path(file), "--runtime-env") if file else {}
    tree = parse_untyped(written)
    if not isinstance(tree, dict):
        raise UserError(f"--runtime-env {file} must be a mapping, for example 'env_vars: {{NAME: value}}'")
    if "working_dir" in tree:
        raise UserError(f"--runtime-env {file} names a working_dir; use --working-dir instead")
    if isinstance(tree.get("env_vars"), dict):  # values stay the text that was written: 010 is not 8
        tree["env_vars"] = {name: str(text) if isinstance(text, str) else text for name, text in written["env_vars"].items()}
    return {**tree, "working_dir": str(folder)}


def find_dashboard_address(given: str | None, environ: Mapping[str, str]) -> str:
    """Returns the URL of the cluster's dashboard: ``--address``, else that of Ray's own variables, else this machine's.

    Raises UserError, with the URL that was probably meant, for what is no URL of a web server.
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
        raise UserError(f"{source} {address} is no URL; give the dashboard's, {MEANT}") from None
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
        likely = 8265 if port in (None, *DRIVER_PORTS) else port
        drivers = f"names port {port}, where drivers join the cluster; jobs are sent to its dashboard"
        about = drivers if port in DRIVER_PORTS else "is no URL"
        raise UserError(f"{source} {address} {about}: give --address http://{host}:{likely}")
    return address.rstrip("/")


def connect_client(address: str) -> JobSubmissionClient:
    """Connects a client to the cluster at ``address``, within seconds. Raises UserError with the remedy."""
    _require_answer(address)
    for noisy in ("ray._private.runtime_env.packaging", "ray.dashboard.modules.job.sdk"):  # every ignore file, every socket
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray takes its variables before the argument ``address``
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        reason = error.message.splitlines()[0]
        raise UserError(f"the cluster at {address} refused the token ({reason}); {TOKEN_REMEDY}") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{address} is not the dashboard of a Ray cluster: {error}") from None


def follow_job(client: JobSubmissionClient, address: str, job: str) -> int:
    """Shows the job's log until it ends, and returns its exit code. Ctrl-C leaves the job running."""
    try:
        asyncio.run(_print_log(client, job))
        while not (details := client.get_job_info(job)).status.is_terminal():
            time.sleep(1)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on\n{_describe_job_commands(address, job)}", file=sys.stderr)
        return INTERRUPTED
    except (OSError, RuntimeError) as error:
        commands = _describe_job_commands(address, job)
        raise UserError(f"lost sight of job {job}, which may still run: {error}\n{commands}") from None
    reason = (details.message or "").partition(",")[0]  # after the comma Ray repeats the log
    print(f"job {job} {details.status}" + (f": {reason}" if details.status != "SUCCEEDED" else ""), flush=True)
    return read_exit_code(details)


def read_exit_code(details: JobDetails) -> int:
    """Returns 0 for a job that succeeded, else the command's own code, else 1 (it was stopped, or it never started)."""
    if details.status == "SUCCEEDED":
        return DONE
    code = details.driver_exit_code or FAILED
    return code if code > 0 else 128 - code  # killed by a signal, as a shell tells it


def _require_answer(address: str) -> None:
    """Raises UserError if nothing answers at the address: Ray's own client has no time limit and would wait forever."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers; the client tells a wrong token from a wrong server
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)).strip()
        reason = reason if reason.isprintable() else "what answers is no web server"
        raise UserError(
            f"no Ray cluster answers at {address} within {CONNECT_SECONDS:g} s ({reason}); give --address http://HEAD:8265, "
            "the dashboard's address, and forward the port when the cluster is remote (see cluster/README.md)"
        ) from None


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _describe_job_commands(address: str, job: str) -> str:
    return f"  follow: ray job logs --follow --address {address} {job}\n  stop:   ray job stop --address {address} {job}"


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(
        "submit", __doc__, "--address http://HEAD:8265 train --config jobs/configs/demo.yaml", allow_abbrev=False
    )
    parser.add_argument("--address", metavar="URL", help=f"dashboard of the cluster (RAY_ADDRESS, else {DEFAULT_ADDRESS})")
    parser.add_argument("--working-dir", metavar="DIR", default=".", help="folder to upload (default: the current one)")
    parser.add_argument("--runtime-env", metavar="FILE", help="YAML with more of Ray's runtime environment, as env_vars")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the cluster has the job")
    parser.add_argument("command", metavar="COMMAND", help=", ".join(name for name in COMMANDS if name != "submit"))
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER, help="the command's own, unchanged")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(run(main))
