"""What is in the Kubernetes objects that Kustomize makes of ``cluster/overlays``, and the commands in them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import train
from jobs.__main__ import COMMANDS
from pipeline.config import Config, load_config

Tree = dict[str, Any]
OVERLAYS = {
    "kind": ["NetworkPolicy", "PersistentVolumeClaim", "RayCluster"],
    "kind/shared": ["NetworkPolicy", "PersistentVolumeClaim"],
    "kind/job": ["RayJob"],
    "kind/service": ["RayService"],
    "gpu": ["NetworkPolicy", "PersistentVolumeClaim", "RayCluster"],
    "gpu/shared": ["NetworkPolicy", "PersistentVolumeClaim"],
    "gpu/job": ["RayJob"],
    "gpu/nightly": ["CronJob"],
    "gpu/raycronjob": ["RayCronJob"],
    "gpu/service": ["RayService"],
}
"""The kinds of the objects that ``kubectl apply -k cluster/overlays/...`` makes."""


def read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # the CRDs have a megabyte: 20 times faster


def render(folder: Path) -> str:
    """The output of Kustomize, which is a part of kubectl; skips without kubectl. Raises CalledProcessError if it refuses."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl in PATH, whose Kustomize renders cluster/overlays")
    return subprocess.run([kubectl, "kustomize", folder], check=True, capture_output=True, text=True, timeout=60).stdout


def find_cluster(manifest: Tree) -> Tree:
    """The spec of the RayCluster that is, or is in, an object."""
    spec: Tree = manifest["spec"].get("jobTemplate", manifest["spec"])
    cluster: Tree = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster


def list_nodes(manifest: Tree) -> Iterator[Tree]:
    """The pod templates of the nodes of a Ray cluster: first its head's, then those of its groups."""
    cluster = find_cluster(manifest)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def count_resources(manifest: Tree) -> tuple[float, float]:
    """CPUs and GPUs that are there before the first job asks for any."""
    cpus = gpus = 0.0
    for group in find_cluster(manifest)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["minReplicas"] * float(limits["cpu"])
        gpus += group["minReplicas"] * float(limits.get("nvidia.com/gpu", 0))
    return cpus, gpus


def run_config(entrypoint: str, repository: Path) -> Config:
    """Configuration of a ``python -m jobs.train`` line, read as the command itself reads it."""
    python, option, module, *words = shlex.split(entrypoint)
    assert (python, option) == ("python", "-m")
    assert module in {f"jobs.{command}" for command in COMMANDS}, module
    options = train.build_parser().parse_args(words)
    return load_config([repository / file for file in options.config], options.overrides)
