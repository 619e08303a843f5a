"""The jobs of a cluster: those that were submitted, and commands that joined it by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from ray.job_submission import JobDetails

from pipeline.errors import UserError, suggest
from pipeline.ray_cluster.dashboard import Cluster, ConnectionLost, read_job

FOLDER = "actnetformer_folder"
"""Key of a job's metadata with the folder, on the cluster, of the run or study that the job writes."""
READER = "actnetformer_reader"
"""Key of the metadata of short jobs that only read run folders for a command; they are not the user's work."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable with the whole seconds from SIGTERM to SIGKILL when a job is stopped; Ray reads it where the job's command runs."""
RAYS_STOP_SECONDS = 3
"""What Ray waits if nobody sets ``STOP_WAIT``. A run needs up to ``scale.stop_seconds`` and the time of a checkpoint."""
STOP_SECONDS = 60
"""What jobs.submit sets it to."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class ClusterJob:
    """A job."""

    name: str
    """The id by which it is followed and stopped."""
    state: str
    """``pending``, ``running``, ``succeeded``, ``failed`` or ``stopped``."""
    command: str
    folder: str | None
    """Folder of its run or study on the cluster; None for other commands, and if the job was not sent by jobs.submit."""
    package: str | None
    """URI of the folder that was uploaded for it, if there was one."""
    begun: datetime | None
    ended: datetime | None
    is_submitted: bool
    """Whether it was sent as a job; otherwise a command that was started on a node, which has no log here."""
    process: str
    """``process 4711 on 10.0.0.5`` of a command that was started on a node; otherwise ""."""
    stop_seconds: int
    """Seconds from SIGTERM to SIGKILL when it is stopped."""
    has_own_stop_seconds: bool
    """Whether the job itself says so; otherwise they are Ray's default, which the nodes' environment may change."""
    failure: str | None
    """Why it failed, in Ray's words; None if it did not."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in ("succeeded", "failed", "stopped")

    @property
    def run(self) -> str:
        """The name of its run or study; "" if it is unknown."""
        return PurePosixPath(self.folder).name if self.folder else ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON, without what may hold secrets."""
        times = {
            name: one and one.isoformat(timespec="seconds") for name, one in (("begun", self.begun), ("ended", self.ended))
        }
        return {"run": self.run, **{name: value for name, value in vars(self).items() if name not in times}, **times}


def parse_job(details: JobDetails) -> ClusterJob:
    """Parses what Ray tells about a job."""
    environment = details.runtime_env or {}
    variables = environment.get("env_vars") or {}
    stop = str(variables.get(STOP_WAIT, ""))
    driver = details.driver_info
    is_submitted = details.submission_id is not None
    state = str(details.status.value if hasattr(details.status, "value") else details.status).lower()
    return ClusterJob(
        name=details.submission_id or details.job_id or "?",
        state=state,
        command=details.entrypoint,
        folder=(details.metadata or {}).get(FOLDER),
        package=environment.get("working_dir"),
        begun=_parse_time(details.start_time),
        ended=_parse_time(details.end_time),
        is_submitted=is_submitted,
        process=f"process {driver.pid} on {driver.node_ip_address}" if driver and not is_submitted else "",
        stop_seconds=int(stop) if stop.isdecimal() else RAYS_STOP_SECONDS,
        has_own_stop_seconds=stop.isdecimal(),
        failure=(details.message or "").partition(", last available logs")[0] or None if state == "failed" else None,
    )


def list_jobs(cluster: Cluster) -> list[ClusterJob]:
    """Lists the cluster's jobs, the newest first. Raises the same as ``Cluster.read``."""
    found = [JobDetails(**one) for one in cluster.read("/api/jobs/")]
    jobs = [parse_job(one) for one in found if READER not in (one.metadata or {})]
    return sorted(jobs, key=lambda job: job.begun or datetime.now(UTC), reverse=True)


def find_job(jobs: Sequence[ClusterJob], word: str) -> ClusterJob:
    """Finds the job that a user means: by its id, else the newest one whose run or study is named so.

    Raises UserError, with the nearest name, if there is none.
    """
    found = next((job for job in jobs if job.name == word), None) or next((job for job in jobs if job.run == word), None)
    if found is None:
        names = [name for job in jobs for name in (job.name, job.run) if name]
        known = suggest(word, names) or (f"; it has {', '.join(names[:10])}" if names else ", nor any other")
        raise UserError(f"the cluster has no job {word}{known}")
    return found


def stop_job(cluster: Cluster, job: ClusterJob, more_seconds: float = 30.0) -> ClusterJob:
    """Stops a submitted job: Ray sends SIGTERM, upon which a run writes a checkpoint and ends, and after ``job.stop_seconds``
    SIGKILL. Returns the job as it is when it has ended or, at the latest, ``more_seconds`` later.

    Raises UserError for a command that was started on a node, and ConnectionLost.
    """
    if job.is_over:
        return job
    if not job.is_submitted:
        raise UserError(
            f"{job.name} was started on a node, not sent as a job, so Ray cannot stop it: end {job.process or 'its process'} "
            "there with `kill -TERM`, which writes a checkpoint, too"
        )
    try:
        cluster.stop_job(job.name)
    except (OSError, RuntimeError) as error:
        raise ConnectionLost(str(error)) from None
    return wait_for(lambda: parse_job(read_job(cluster, job.name)), job.stop_seconds + more_seconds)


def wait_for(ask: Callable[[], ClusterJob], seconds: float) -> ClusterJob:
    """Asks for a job until it has ended, for at most ``seconds``; returns the last answer. Raises ConnectionLost if that was
    none."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            job = ask()
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
        else:
            if job.is_over or time.monotonic() > deadline:
                return job
        time.sleep(POLL_SECONDS)


def _parse_time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
