"""``python -m jobs.submit [options] COMMAND [ARGUMENTS]``: run a command of this project on a Ray cluster, and follow it.

The working directory is uploaded (less what .gitignore and .rayignore name), the command's log is shown as it comes,
and its exit code is passed on. Paths among the arguments are paths on the cluster. A job that is stopped has a minute to
write a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ray.job_submission import JobDetails

from jobs.__main__ import COMMANDS
from jobs.command import DONE, FAILED, INTERRUPTED, make_parser, run
from pipeline.config.text import parse_untyped, read_yaml
from pipeline.errors import UserError, suggest
from pipeline.files.url_passwords import has_password, hide_passwords
from pipeline.ray_cluster.cluster_jobs import FOLDER, STOP_SECONDS, STOP_WAIT
from pipeline.ray_cluster.dashboard import DEFAULT_ADDRESS, Cluster, ConnectionLost, Dashboard, find_dashboard_address
from pipeline.ray_cluster.job_log import follow_log
from pipeline.ray_cluster.job_upload import MAX_MEGABYTES, check_upload, measure_upload
from pipeline.run_folder.results_folder import find_results

NOT_SENT = ("submit", "cluster", "schedule")
"""Commands that speak to a cluster from outside, and are not sent to one."""
READY_SECONDS = 60.0
"""How long a cluster that was just started may need until it takes jobs."""
SECRET = re.compile(r"SECRET|TOKEN|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
"""What names of variables with secrets have in them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Submits one command. Returns its exit code, or 0 at once with ``--no-wait``. Raises UserError for any mistake."""
    args = _parse_arguments(argv)
    command = build_entrypoint(args.command, args.arguments)
    environment = read_runtime_env(args.runtime_env, args.working_dir)
    environment["env_vars"] = {
        STOP_WAIT: str(STOP_SECONDS), **environment.get("env_vars", {}), **read_variables(args.env, os.environ)
    }  # fmt: skip
    address = find_dashboard_address(args.address, os.environ)
    cluster = Dashboard(address)
    upload = measure_upload(Path(environment["working_dir"]), environment.get("excludes") or ())
    check_upload(upload, args.upload_limit)
    print(f"upload: {upload.describe()}", flush=True)
    folder = find_results(args.command, args.arguments, Path(environment["working_dir"]))
    if folder is not None and "://" not in folder and not PurePosixPath(folder).is_absolute():
        print(f"note: {folder} is a path in the job's own folder, which the cluster deletes: give an absolute run.storage_path "
              "on storage that all nodes share", file=sys.stderr, flush=True)  # fmt: skip
    try:
        job = submit_when_ready(
            partial(
                cluster.client.submit_job,
                entrypoint=command, runtime_env=environment, metadata={FOLDER: folder} if folder is not None else None,
            )
        )  # fmt: skip
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        remedy = "python -m jobs.cluster status lists its machines"
        raise UserError(f"the cluster at {address} did not take the job: {str(error).rstrip('.')}; {remedy}") from None
    print(f"job {job}: {command}\n{_describe_job_commands(address, job)}", flush=True)
    return DONE if args.no_wait else follow_job(cluster, job)


def submit_when_ready(submit: Callable[[], str], seconds: float = READY_SECONDS) -> str:
    """Submits a job, and again for ``seconds`` while no machine takes jobs yet. Returns the job's name; raises Ray's errors."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(min(1.0, seconds / 10))


def build_entrypoint(command: str, arguments: Sequence[str]) -> str:
    """Builds the shell line that runs ``command`` on the cluster. Raises UserError for an unknown command, or this one."""
    allowed = [name for name in COMMANDS if name not in NOT_SENT]
    if command in NOT_SENT:
        itself = "submit itself" if command == "submit" else f"submit {command}, which is for this machine"
        raise UserError(f"submit cannot {itself}; give one of: {', '.join(allowed)}")
    if command not in allowed:
        remedy = suggest(command, allowed) or f"; give one of: {', '.join(allowed)}"
        raise UserError(f"unknown command {command}{remedy}")
    for word in arguments:
        if has_password(word):
            raise UserError(
                f"{hide_passwords(word)} has a password, which the cluster would show to whoever lists its jobs: leave it out, "
                "and send it as a variable by its name (PostgreSQL: --env PGPASSWORD; MLflow: --env MLFLOW_TRACKING_PASSWORD)"
            )
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
        variables = written["env_vars"].items()
        tree["env_vars"] = {name: str(text) if isinstance(text, str) else text for name, text in variables}
        if secret := next((name for name in tree["env_vars"] if SECRET.search(str(name))), None):
            raise UserError(
                f"--runtime-env {file} holds {secret}: keep secrets out of files; set the variable in this shell, and send it "
                f"by its name, --env {secret}"
            )
    return {**tree, "working_dir": str(folder)}


def read_variables(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Reads the variables to send. Raises UserError for one that is not set, and for a value instead of a name."""
    for name in names:
        if "=" in name:
            raise UserError(
                f"--env {name.partition('=')[0]}=... gives a value, which would stay in your shell's history: give the name "
                "only, and its value is taken from this shell's environment"
            )
        if name not in environ:
            raise UserError(f"--env {name}: there is no such variable in this shell's environment; export it first")
    return {name: environ[name] for name in names}


def follow_job(cluster: Cluster, job: str) -> int:
    """Shows the job's log until it ends, and returns its exit code. Ctrl-C leaves the job running.

    A lost connection is made again. Raises UserError if that takes longer than 10 minutes, RunFailed if the cluster no longer
    knows the job.
    """
    try:
        details = follow_log(cluster, job, show=_show, warn=_warn)
    except KeyboardInterrupt:
        print(f"\njob {job} keeps running\n{_describe_job_commands(cluster.address, job)}", file=sys.stderr)
        return INTERRUPTED
    except ConnectionLost as error:
        commands = _describe_job_commands(cluster.address, job)
        raise UserError(f"lost sight of job {job}, which may still run: {error}\n{commands}") from None
    reason = (details.message or "").partition(",")[0]  # after the comma Ray repeats the log
    print(f"job {job} {details.status}" + (f": {reason}" if details.status != "SUCCEEDED" else ""), flush=True)
    return read_exit_code(details)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _warn(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def read_exit_code(details: JobDetails) -> int:
    """Returns 0 for a job that succeeded, else the command's own code, else 1 (it was stopped, or it never started)."""
    if details.status == "SUCCEEDED":
        return DONE
    code = details.driver_exit_code or FAILED
    return code if code > 0 else 128 - code  # killed by a signal, as a shell tells it


def _describe_job_commands(address: str, job: str) -> str:
    command = f"python -m jobs.cluster --address {address}"
    return f"  follow: {command} logs {job}\n  stop:   {command} stop {job}"


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    example = "--address http://HEAD:8265 train --config jobs/configs/demo.yaml"
    parser = make_parser("submit", __doc__, example, allow_abbrev=False)
    parser.add_argument("command", metavar="COMMAND", help=", ".join(name for name in COMMANDS if name not in NOT_SENT))
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER, help="the command's own, unchanged")
    where = parser.add_argument_group("which cluster")
    about = f"its dashboard (default: RAY_ADDRESS, else {DEFAULT_ADDRESS})"
    where.add_argument("--address", metavar="URL", help=about)
    where.add_argument("--no-wait", action="store_true", help="return as soon as the cluster has the job")
    sent = parser.add_argument_group("what is sent")
    sent.add_argument("--working-dir", metavar="DIR", default=".", help="folder to upload (default: the current one)")
    about = f"upload up to this, whatever it is (default: {MAX_MEGABYTES:g}, and no data set, run or environment)"
    sent.add_argument("--upload-limit", metavar="MB", type=float, help=about)
    about = "give the job this variable of this shell, for example a password; repeatable"
    sent.add_argument("--env", metavar="NAME", action="append", default=[], help=about)
    about = "YAML file with more of Ray's runtime environment, for example env_vars"
    sent.add_argument("--runtime-env", metavar="FILE", help=about)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(run(main))
