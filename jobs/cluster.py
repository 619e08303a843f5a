"""``python -m jobs.cluster [--address URL] status|jobs|logs|stop|runs``: look at a Ray cluster, and stop jobs on it.

Runs are sent with jobs.submit. A job may be given by its id or by the name of its run. All need the dashboard's address only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.command import DONE, FAILED, INTERRUPTED, describe_command, make_parser, name_arguments, run
from jobs.runs import format_age, format_bytes, format_list, format_table
from pipeline.analysis.run_list import describe_folder
from pipeline.config import load_config
from pipeline.errors import RunFailed, UserError
from pipeline.files.url_passwords import hide_passwords
from pipeline.ray_cluster.cluster_jobs import ClusterJob, find_job, list_jobs, parse_job, stop_job
from pipeline.ray_cluster.cluster_nodes import ClusterState, Fit, check_fit, read_cluster_state
from pipeline.ray_cluster.dashboard import DEFAULT_ADDRESS, Cluster, ConnectionLost, Dashboard, find_dashboard_address
from pipeline.ray_cluster.job_log import follow_log
from pipeline.ray_cluster.job_upload import check_upload, measure_upload
from pipeline.ray_cluster.read_on_cluster import read_on_cluster
from pipeline.run_folder.study_folder import STUDY_FACTS

SHOWN = 10
"""How many jobs that have ended are listed without ``--all``."""
ACTIONS = {
    "status": ("nodes, and whether a configuration's run fits on them", "--fits jobs/configs/demo.yaml scale.workers=4"),
    "jobs": ("jobs, and how far their runs are", "--all"),
    "logs": ("log of a job, followed until the job ends", "first"),
    "stop": ("stop a job: with a checkpoint, and firmly if that takes too long", "first"),
    "runs": ("runs and studies in a folder of the cluster", "/shared/runs"),
}
"""What each action does, and an example of the words behind it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Does one of the five. Raises UserError if no cluster answers, for a wrong token and for another Ray version."""
    options = build_parser().parse_args(argv)
    cluster = Dashboard(find_dashboard_address(options.address, os.environ))
    actions = {"status": _show_status, "jobs": _show_jobs, "logs": _show_log, "stop": _stop, "runs": _show_runs}
    try:
        return actions[options.action](cluster, options)
    except ConnectionLost as error:
        raise UserError(f"the cluster at {cluster.address} no longer answers: {error}; run the same command again") from None


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command's arguments."""
    parser = make_parser("cluster", __doc__, "--address http://HEAD:8265 jobs", "status --fits jobs/configs/demo.yaml")
    about = f"dashboard of the cluster (default: RAY_ADDRESS, else {DEFAULT_ADDRESS})"
    parser.add_argument("--address", metavar="URL", help=about)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions (ACTION --help has more)")
    made = {name: _add_action(actions, parser.prog, name, *about) for name, about in ACTIONS.items()}
    status = made["status"]
    about = "configuration of a run, a YAML file: does it fit? repeatable"
    status.add_argument("--fits", metavar="FILE", action="append", help=about)
    status.add_argument("overrides", nargs="*", metavar="key=value", help="changes of that configuration")
    about = f"list all jobs, not only {SHOWN} of those that have ended"
    made["jobs"].add_argument("--all", action="store_true", help=about)
    for name in ("logs", "stop"):
        made[name].add_argument("job", metavar="JOB", help="its id, or the name of its run")
    made["logs"].add_argument("--no-follow", action="store_true", help="end when what is there now has been shown")
    runs = made["runs"]
    runs.add_argument("folder", metavar="FOLDER", help="an absolute path on the cluster, for example /shared/runs")
    runs.add_argument("--all", action="store_true", help="list the runs that studies and searches consist of, too")
    return parser


def _add_action(actions: Any, program: str, name: str, about: str, example: str) -> argparse.ArgumentParser:
    described = describe_command(f"{program} {name}", f"{about}.", example)
    made: argparse.ArgumentParser = actions.add_parser(name, help=about, **described)
    made.add_argument("--json", action="store_true", help="print objects instead of tables")
    return name_arguments(made)


# ------------------------------------------------------------------------------------------------------------------ status


def _show_status(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.overrides and not options.fits:
        raise UserError(f"{options.overrides[0]} changes a configuration: name its file with --fits FILE")
    config = load_config(options.fits, options.overrides) if options.fits else None
    state = read_cluster_state(cluster)
    fit = None if config is None else check_fit(config, state.nodes)
    if options.json:
        nodes = [{**vars(node), "labels": dict(node.labels)} for node in state.nodes]
        print(json.dumps({**vars(state), "nodes": nodes, "fit": fit and vars(fit)}, indent=1))
    else:
        print("\n".join(format_status(state, fit)))
    return DONE if fit is None or fit.fits else FAILED


def format_status(state: ClusterState, fit: Fit | None) -> list[str]:
    """Formats the nodes of a cluster for a terminal, with what each may do for a run that fits."""
    rows = [["node", "CPUs", "GPUs", "memory", "object store", "labels", *(["may"] if fit and fit.train_nodes else [])]]
    for node in state.nodes:
        labels = ", ".join(f"{name}={text}" for name, text in node.labels.items())
        row = [f"{node.name} (head)" if node.is_head else node.name, _format_use(node.cpus_in_use, node.cpus)]
        row += [_format_use(node.gpus_in_use, node.gpus), format_bytes(node.memory_bytes)]
        row += [format_bytes(node.object_store_bytes), labels]
        if fit and fit.train_nodes:
            may = {"train": fit.train_nodes, "decode": fit.decode_nodes}
            row.append(", ".join(what for what, names in may.items() if node.name in names))
        rows.append(row)
    lines = [f"{state.address}: Ray {state.ray}, Python {state.python} on all nodes", ""]
    lines += format_table(rows, ("CPUs", "GPUs", "memory", "object store"))
    if not state.nodes:
        lines += ["", "no machine: the cluster still starts, or its machines are gone; `ray stop` and `ray start` begin again"]
    if any(node.cpus_in_use is not None for node in state.nodes):
        lines += ["", "CPUs and GPUs: in use of what Ray may give away"]
    if fit is not None:
        lines += ["", f"{'fits' if fit.fits else 'does not fit'}: {fit.description}"]
    return lines


def _format_use(used: float | None, total: float) -> str:
    return f"{total:g}" if used is None else f"{used:g} of {total:g}"


# -------------------------------------------------------------------------------------------------------------------- jobs


def _show_jobs(cluster: Dashboard, options: argparse.Namespace) -> int:
    found = list_jobs(cluster)
    under_way = [job for job in found if not job.is_over]
    shown = found if options.all else [*under_way, *[job for job in found if job.is_over][:SHOWN]]
    progress = _read_runs(cluster, shown)
    if options.json:
        print(json.dumps([_describe_job(job, progress) for job in shown], indent=1))
        return DONE
    if not shown:
        print(f"no job on {cluster.address}; python -m jobs.submit --address {cluster.address} COMMAND sends one")
        return DONE
    print("\n".join(format_jobs(shown, progress, datetime.now(UTC))))
    if len(found) > len(shown):
        print(f"\n{len(found) - len(shown)} more have ended; --all lists them")
    return DONE


def _describe_job(job: ClusterJob, progress: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**job.to_dict(), "command": hide_passwords(job.command), "progress": progress.get(job.folder or "")}


def format_jobs(jobs: Sequence[ClusterJob], progress: Mapping[str, Mapping[str, Any]], now: datetime) -> list[str]:
    """Formats jobs for a terminal, a line for each, and below it why it failed and how a worker of its run failed last.

    ``progress`` has the objects of ``jobs.runs --json`` by folder.
    """
    rows: list[tuple[str, ...]] = [("job", "state", "what", "done", "s/step", "left", "data wait", "begun")]
    notes: list[list[str]] = [[]]
    for job in jobs:
        known = progress.get(job.folder or "", {})
        rows.append((job.name, job.state, _name_work(job), *_format_progress(known, job), _format_begun(job, now)))
        notes.append([f"failed: {hide_passwords(job.failure)}"] if job.failure else [])
        notes[-1] += [f"a worker failed last: {known['last_failure']}"] if known.get("last_failure") else []
        notes[-1] += [job.process] if job.process and not job.is_over else []
    table = format_table(rows, ("done", "s/step", "left", "data wait"))
    return [line for row, more in zip(table, notes, strict=True) for line in (row, *(f"    {note}" for note in more))]


def _name_work(job: ClusterJob) -> str:
    words = [word.removeprefix("jobs.") for word in job.command.split() if word.startswith("jobs.")]
    command = words[0] if words else (job.command.split() or ["?"])[0]
    return f"{command} {job.run}".strip()


def _format_progress(known: Mapping[str, Any], job: ClusterJob) -> tuple[str, str, str, str]:
    if not known:
        return "", "", "", ""
    done = f"{known['done']:,}/{known['planned']:,}" if known.get("planned") else f"{known['done']:,}"
    seconds, left, wait = (known.get(name) for name in ("seconds_per_step", "seconds_left", "data_wait"))
    return (
        done,
        "" if seconds is None else f"{seconds:.2g}",
        "" if left is None or job.is_over else f"{int(left) // 3600}:{int(left) // 60 % 60:02d} h",
        "" if wait is None else f"{wait:.0%}",
    )


def _format_begun(job: ClusterJob, now: datetime) -> str:
    return "" if job.begun is None else format_age((now - job.begun).total_seconds())


def _read_runs(cluster: Dashboard, jobs: Sequence[ClusterJob]) -> dict[str, dict[str, Any]]:
    """Reads how far the runs of jobs are, by their folders: here where the folder is, else by a short job on the cluster."""
    folders = dict.fromkeys(job.folder for job in jobs if job.folder and "://" not in job.folder)
    here = [folder for folder in folders if any((Path(folder) / name).is_file() for name in ("config.yaml", STUDY_FACTS))]
    found = {folder: describe_folder(Path(folder)).to_dict() for folder in here}
    there = [folder for folder in folders if folder not in here]
    if there:
        package = next((job.package for job in jobs if job.package and not job.is_over), None)
        try:
            read = _read_folders(cluster, there, package or ".")
        except RunFailed as error:
            print(f"note: how far runs are is not known: {error}", file=sys.stderr)
            read = []
        found |= {one["folder"]: one for one in read}
    return found


def _read_folders(cluster: Dashboard, folders: Sequence[str], working_dir: str, inside_studies: bool = False) -> Any:
    words = ["jobs.runs", "--json", *(["--all"] if inside_studies else []), "--", *folders]
    if "://" not in working_dir:
        check_upload(measure_upload(Path(working_dir).resolve()), None)
    return read_on_cluster(cluster, words, working_dir)


# --------------------------------------------------------------------------------------------------------------- logs, stop


def _show_log(cluster: Dashboard, options: argparse.Namespace) -> int:
    job = find_job(list_jobs(cluster), options.job)
    if not job.is_submitted:
        raise UserError(
            f"{job.name} was started on a node, not sent as a job: its log is where {job.process or 'it'} writes it"
        )
    show = _show_as_json if options.json else _show_text
    if options.no_follow:
        show(cluster.read(f"/api/jobs/{job.name}/logs")["logs"])
        return DONE
    try:
        job = parse_job(follow_log(cluster, job.name, show, _warn))
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.json:
        print(json.dumps({"job": job.name, "state": job.state, "failure": job.failure}), flush=True)
    else:
        print(f"job {job.name} {job.state}", file=sys.stderr)
    return DONE


def _show_text(text: str) -> None:
    print(hide_passwords(text), end="", flush=True)


def _show_as_json(text: str) -> None:
    for line in text.splitlines():
        print(json.dumps({"line": hide_passwords(line)}), flush=True)


def _warn(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _stop(cluster: Dashboard, options: argparse.Namespace) -> int:
    job = find_job(list_jobs(cluster), options.job)
    if not job.is_over:
        if not job.has_own_stop_seconds:
            _warn(
                f"{job.name} was not sent by jobs.submit: unless its nodes say otherwise, Ray kills it {job.stop_seconds} s "
                "after SIGTERM, which may be too soon for a checkpoint"
            )
        print(f"SIGTERM to {job.name}; SIGKILL in {job.stop_seconds} s unless it has ended", file=sys.stderr, flush=True)
        job = stop_job(cluster, job)
    last = _read_last_words(cluster, job)
    if options.json:
        print(json.dumps({**job.to_dict(), "command": hide_passwords(job.command), "last_lines": last}, indent=1))
    else:
        print("\n".join([*(f"    {line}" for line in last), f"job {job.name} {job.state}"]))
    if not job.is_over:
        raise RunFailed(f"job {job.name} has not ended {job.stop_seconds + 30} s after SIGTERM; look at the node it runs on")
    return DONE


def _read_last_words(cluster: Cluster, job: ClusterJob, number: int = 3) -> list[str]:
    """Reads the last lines of the job's log, which say whether there is a checkpoint."""
    if not job.is_submitted:
        return []
    lines = str(cluster.read(f"/api/jobs/{job.name}/logs")["logs"]).splitlines()
    return [hide_passwords(line) for line in lines if line.strip()][-number:]


# -------------------------------------------------------------------------------------------------------------------- runs


def _show_runs(cluster: Dashboard, options: argparse.Namespace) -> int:
    if not options.folder.startswith("/"):
        raise UserError(f"runs {options.folder}: give an absolute path on the cluster, for example /shared/runs")
    package = next((job.package for job in list_jobs(cluster) if job.package and not job.is_over), None)
    try:
        found = _read_folders(cluster, [options.folder], package or ".", options.all)
    except RunFailed as error:
        raise UserError(f"{shlex.quote(options.folder)} cannot be read there: {error}") from None
    if options.json:
        print(json.dumps(found, indent=1))
    elif not found:
        print(f"no run in {options.folder} on the cluster")
    else:
        print("\n".join(format_list(found, options.folder, datetime.now(UTC))))
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
