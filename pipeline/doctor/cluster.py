"""Checks of Ray, of object storage, and of a configuration against the machines that would run it."""

from __future__ import annotations

import importlib.util
import os
import stat
import time
import uuid
from importlib.metadata import version
from pathlib import Path

from pipeline.config import Config
from pipeline.doctor.findings import Finding
from pipeline.errors import UserError
from pipeline.files import storage


def check_ray() -> list[Finding]:
    """Checks Ray's version, whether a cluster answers, its token, and the length of its temporary folder."""
    if importlib.util.find_spec("ray") is None:
        return [
            Finding("ray", "note", "not installed", "only scale.workers=0 works: pip install 'ray[default,data,train,tune]'")
        ]
    from pipeline.ray_cluster.connect import find_temporary_folder, is_reachable
    from pipeline.ray_cluster.sockets import is_short_enough

    findings = [Finding("ray", "ok", f"Ray {version('ray')}")]
    try:
        where = os.environ.get("RAY_ADDRESS") or "this machine"
        running = f"a cluster answers at {where}" if is_reachable() else "no cluster answers; a command starts one here"
        findings.append(Finding("cluster", "ok", running))
    except UserError as error:
        findings.append(Finding("cluster", "problem", str(error).splitlines()[0], "correct RAY_ADDRESS, or unset it"))
    folder = find_temporary_folder()
    if is_short_enough(folder):
        findings.append(Finding("ray's folder", "ok", f"{folder}"))
    else:
        found = f"{folder} is too long for Ray's sockets; commands make a short link to it"
        findings.append(Finding("ray's folder", "note", found, "or set RAY_TMPDIR to a short path"))
    return [*findings, check_token()]


def check_token(environment: dict[str, str] | None = None) -> Finding:
    """Checks that the token of a cluster, if there is one, is secret."""
    environment = dict(os.environ) if environment is None else environment
    if environment.get("RAY_AUTH_MODE") != "token":
        remedy = "RAY_AUTH_MODE=token protects a cluster that others can reach"
        return Finding("token", "note", "Ray asks for none: whoever reaches its ports can run code", remedy)
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if environment.get("RAY_AUTH_TOKEN"):
        return Finding("token", "ok", "in RAY_AUTH_TOKEN")
    if not path.is_file():
        return Finding("token", "problem", f"{path} is missing", "copy the cluster's token there: ray get-auth-token")
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return Finding("token", "problem", f"{path} can be read by others", f"chmod 600 {path}")
    return Finding("token", "ok", f"{path}, readable by this user only")


def check_storage(folder: str) -> Finding:
    """Writes, reads and deletes a small file in a folder or URI."""
    location, content = f"{folder.rstrip('/')}/.doctor-{uuid.uuid4().hex}", os.urandom(64)
    begun = time.perf_counter()
    try:
        if storage.is_remote(folder):
            storage.write_bytes(location, content)
            same = storage.read_bytes(location) == content
            storage.delete(location)
        else:
            path = Path(storage.to_local_path(location))
            path.write_bytes(content)
            same = path.read_bytes() == content
            path.unlink()
    except (OSError, UserError) as error:
        remedy = "check the address, the credentials of this machine, and the right to write"
        return Finding("storage", "problem", f"{folder}: {str(error).splitlines()[0]}", remedy)
    if not same:
        return Finding("storage", "problem", f"{folder} returns other bytes than were written", "use another storage")
    return Finding("storage", "ok", f"{folder}: written, read and deleted in {time.perf_counter() - begun:.2f} s")


def check_configuration(config: Config) -> Finding:
    """Checks whether the cluster that answers, or this machine, has what a configuration reserves."""
    from pipeline.hardware import choose_device

    try:
        if config.scale.workers == 0:
            device = choose_device(config)
            return Finding("configuration", "ok", f"trains in one process on the {device.type.upper()}")
        from pipeline.ray_cluster.connect import check_cluster, connect, is_reachable

        if not is_reachable():
            choose_device(config)
            found = f"scale.workers={config.scale.workers}: no cluster answers, so it was not compared with one"
            return Finding("configuration", "note", found, "start the cluster, or set RAY_ADDRESS")
        connect()
        resources = check_cluster(config)
    except UserError as error:
        return Finding("configuration", "problem", str(error).splitlines()[0], "change the scale.* keys, or add machines")
    return Finding("configuration", "ok", f"fits: {resources.workers} workers, {resources.decoders}")
