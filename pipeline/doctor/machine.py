"""Checks of the GPU and the limits of this machine. Nothing here needs Ray, decord or a network."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline.doctor.findings import Finding
from pipeline.hardware import Hardware, read_hardware

MIN_FILES, WANTED_FILES = 1024, 4096
"""How many files a process must and should be able to open."""
MIN_SHARED_GB = 1.0
MIN_DISK_GB = 2.0
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


def check_gpu(hardware: Hardware | None = None) -> Finding:
    """Checks whether torch can use a GPU, if there is one."""
    hardware = hardware or read_hardware()
    if hardware.gpus:
        about = f"{len(hardware.gpus)} x {hardware.gpus[0]}, {hardware.gpu_memory / 2**30:.0f} GiB"
        return Finding("gpu", "ok", f"{about}, bf16 {'yes' if hardware.bf16 else 'no'}")
    if hardware.unusable_gpu:
        return Finding(
            "gpu", "problem", hardware.problem, "update the driver, or install a torch for it; scale.gpu=false trains on CPUs"
        )
    if shutil.which("nvidia-smi") and "without CUDA" in hardware.problem:
        return Finding("gpu", "problem", hardware.problem, "this machine has an NVIDIA driver: install a torch with CUDA")
    return Finding("gpu", "note", f"none: {hardware.problem}", "small networks train on CPUs; the paper's need GPUs")


def check_files() -> Finding:
    """Checks how many files a process may open: Ray holds some for each worker and block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"a process may open {soft:,} files"
    if soft >= WANTED_FILES:
        return Finding("open files", "ok", found)
    state = "problem" if soft < MIN_FILES else "note"
    remedy = f"ulimit -n {min(hard, 65536)} before the command" if hard > soft else "raise the hard limit in limits.conf"
    return Finding("open files", state, found, remedy)  # type: ignore[arg-type]


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Checks the memory that processes can share, in which Ray keeps decoded clips."""
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Finding("shared memory", "problem", f"{folder}: {error.strerror}", "Ray needs it; mount a tmpfs there")
    if free >= MIN_SHARED_GB:
        return Finding("shared memory", "ok", f"{free:.1f} GB free in {folder}")
    remedy = "in a container: docker run --shm-size=4g, or an emptyDir of medium Memory; Ray writes to disk otherwise, slowly"
    return Finding("shared memory", "problem", f"{free:.2f} GB free in {folder}", remedy)


def check_disk(folders: dict[str, Path]) -> list[Finding]:
    """Checks that folders can be written, and how much room they have."""
    findings = []
    for what, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            findings.append(Finding(what, "problem", f"{folder} cannot be written", "choose another, or change its owner"))
            continue
        free = shutil.disk_usage(existing).free / 1e9
        state = "ok" if free >= MIN_DISK_GB else "problem"
        remedy = "" if state == "ok" else "free some: a run of the paper's networks writes 1 GB"
        findings.append(Finding(what, state, f"{free:.1f} GB free in {folder}", remedy))  # type: ignore[arg-type]
    return findings


def list_checked_folders(runs: Path) -> dict[str, Path]:
    """Lists the folders that commands write into."""
    return {"runs": runs.absolute(), "temporary": Path(tempfile.gettempdir())}


def check_proxies(environment: dict[str, str] | None = None) -> Finding:
    """Checks that proxy settings exempt this machine, because Ray's processes connect to each other over its own addresses."""
    environment = dict(os.environ) if environment is None else environment
    used = [name for name in PROXIES if environment.get(name) or environment.get(name.upper())]
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not used:
        return Finding("proxy", "ok", "none is set")
    if any(name in exempt for name in ("127.0.0.1", "localhost", "*")):
        return Finding("proxy", "ok", f"{', '.join(used)} set, not for this machine")
    remedy = "export no_proxy=localhost,127.0.0.1 and the cluster's addresses"
    found = f"{', '.join(used)} set without an exception for this machine: Ray's own connections would go through the proxy"
    return Finding("proxy", "problem", found, remedy)


def check_terminal_encoding() -> Finding:
    """Checks that names of videos and classes can be printed."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding.startswith("utf8"):
        return Finding("encoding", "ok", "UTF-8")
    return Finding(
        "encoding", "note", f"output is {encoding or 'of no encoding'}", "export PYTHONUTF8=1 to see names as they are"
    )
