"""Runs a short command on a cluster and reads what it prints as JSON: run folders lie on storage that only the cluster has."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipeline.errors import RunFailed
from pipeline.ray_cluster.cluster_jobs import READER, parse_job, wait_for
from pipeline.ray_cluster.dashboard import Dashboard, read_job

READ_SECONDS = 120.0
"""Time limit for the command; where a machine is busy, most of it passes before Ray has started a process."""


def read_on_cluster(cluster: Dashboard, words: Sequence[str], working_dir: str | None) -> Any:
    """Runs ``python -m WORDS`` on the cluster, and returns the JSON list that it prints.

    ``working_dir`` is the URI of a folder that the cluster has, a folder to upload, or None for the project that is installed
    there. Raises RunFailed with the end of its log if it fails or takes longer than ``READ_SECONDS``, and ConnectionLost.
    """
    environment = {"working_dir": working_dir} if working_dir else {}
    name = cluster.client.submit_job(
        entrypoint=shlex.join(["python", "-m", *words]), runtime_env=environment, metadata={READER: "1"}
    )
    try:
        job = wait_for(lambda: parse_job(read_job(cluster, name)), READ_SECONDS)
        log = cluster.read(f"/api/jobs/{name}/logs")["logs"]
    finally:
        with suppress(RuntimeError, OSError):  # one that still runs; Ray has no other name for what ended
            cluster.client.stop_job(name)
            cluster.client.delete_job(name)
    found = find_json_list(log)
    if job.state != "succeeded" or found is None:
        last = (log.strip() or job.failure or "it printed nothing").splitlines()[-1]
        raise RunFailed(
            f"`{shlex.join(words)}` on the cluster: {last if job.is_over else f'not done after {READ_SECONDS:g} s'}"
        )
    return found


def find_json_list(log: str) -> list[Any] | None:
    """Finds the JSON list in a log, in front of which other lines may stand. It begins at a line's beginning."""
    start = 0
    for line in log.splitlines(keepends=True):
        if line.startswith("["):
            with suppress(ValueError):
                found = json.JSONDecoder().raw_decode(log[start:])[0]
                if isinstance(found, list):
                    return found
        start += len(line)
    return None
