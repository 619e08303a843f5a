"""Prints what the project needs with the given extras, as installed here: ``list_packages.py serve mlflow``.

Each line is ``name==version``, for the packages that the project names and all that those bring along, without the project
itself. ``make audit`` reads it, so that what users get and what only developers have are looked at apart.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "actnetformer"


def list_packages(extras: set[str]) -> dict[str, str]:
    """Returns the version of each package by its name. A package that is not installed, such as one for another system, is left
    out; so is what an unknown extra would bring."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(PROJECT, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version
        for line in package.requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(wanted.name), one) for one in ("", *wanted.extras)]
    del found[PROJECT]
    return found


if __name__ == "__main__":
    for package, version in sorted(list_packages(set(sys.argv[1:])).items()):
        print(f"{package}=={version}")
