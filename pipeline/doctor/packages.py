"""Checks of Python and of the packages that pyproject.toml asks for. It works where most of them are missing."""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from pipeline.doctor.findings import Finding

PROJECT = "actnetformer"
OPTIONAL = {"ray": "training in this process works without it (scale.workers=0)", "decord": "PyAV decodes instead, slower"}
"""Dependencies without which some commands work, and what their absence means."""


def check_python() -> Finding:
    """Says which Python this is; one that is too old or too new, ``jobs`` refuses itself."""
    return Finding("python", "ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")


def check_packages(wanted: list[str] | None = None) -> list[Finding]:
    """Checks that the packages that pyproject.toml asks for are there, in versions that it allows."""
    if wanted is None:
        try:
            wanted = requires(PROJECT) or []
        except PackageNotFoundError:
            what = f"the package {PROJECT} is not installed; commands run from its folder"
            return [Finding("packages", "note", what, "pip install -e . in the repository lets doctor check the versions")]
    needed = [Requirement(line) for line in wanted]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    findings, fine = [], 0
    for one in needed:
        try:
            have = version(one.name)
        except PackageNotFoundError:
            state = "note" if one.name in OPTIONAL else "problem"
            found = f"{one.name} is missing" + (f": {OPTIONAL[one.name]}" if one.name in OPTIONAL else "")
            findings.append(Finding("packages", state, found, f'pip install "{one.name}{one.specifier}"'))  # type: ignore[arg-type]
            continue
        if one.specifier.contains(have, prereleases=True):
            fine += 1
        else:
            remedy = f'pip install "{one.name}{one.specifier}"'
            findings.append(Finding("packages", "problem", f"{one.name} {have}, but {one.specifier} is needed", remedy))
    return [
        Finding("packages", "note" if findings else "ok", f"{fine} of {len(needed)} are there in versions that fit"),
        *findings,
    ]


def check_torchvision() -> Finding:
    """Checks that torchvision can be imported, which it cannot beside a torch that it was not built for."""
    import torch

    try:
        found = f"torchvision {importlib.import_module('torchvision').__version__} fits torch {torch.__version__}"
    except Exception as error:  # of any type: its libraries do not load, or lack an operator
        reason = (str(error) or type(error).__name__).splitlines()[0]
        remedy = "install torch and torchvision from the same index, at versions that belong together"
        return Finding("torchvision", "problem", f"cannot be imported beside torch {torch.__version__}: {reason}", remedy)
    return Finding("torchvision", "ok", found)
