"""The same schedule for Kubernetes: a folder beside those of cluster/overlays/gpu that starts a command at set times."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.schedules.phrase import Times

BASES = {"cronjob": ("CronJob", "nightly"), "raycronjob": ("RayCronJob", "raycronjob")}
"""Kind of the object, and the folder of cluster/overlays/gpu that it is made from, by the word for it."""


def build_kustomization(kind: str, name: str, times: Times, command: Sequence[str], time_zone: str) -> str:
    """Builds the text of a kustomization.yaml. ``command`` has the command's name first. Raises UserError for a command that
    sends itself to a cluster."""
    if command[0] == "submit":
        raise UserError(f"--print {kind}: give the command itself and not submit, which what is printed does where it must")
    target, base = BASES[kind]
    own = f"actnetformer-{name}"
    changes: list[tuple[str, Any]] = [("/metadata/name", own), ("/spec/schedule", times.cron), ("/spec/timeZone", time_zone)]
    if kind == "cronjob":  # its pod has `jobs.submit --address ...` as its command
        changes.append(("/spec/jobTemplate/spec/template/spec/containers/0/args", list(command)))
    else:
        changes.append(("/spec/jobTemplate/entrypoint", shlex.join(["python", "-m", f"jobs.{command[0]}", *command[1:]])))
    patch = [{"op": "replace", "path": path, "value": value} for path, value in changes]
    tree = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../{base}"],
        "patches": [{"target": {"kind": target}, "patch": yaml.safe_dump(patch, sort_keys=False, width=10_000)}],
    }
    folder = f"cluster/overlays/gpu/{name}"
    head = f"# Write this to {folder}/kustomization.yaml; then: kubectl apply -k {folder}\n# {times.phrase}\n"
    return head + yaml.safe_dump(tree, sort_keys=False, width=10_000)
