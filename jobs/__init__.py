"""The commands, a file each. Importing any of them makes a broken installation end with a message instead of a traceback.

This file is read by whatever Python a newcomer has, so it uses nothing that Python 3.8 lacks.
"""

from __future__ import annotations

import gc
import sys
from types import TracebackType

OWN = ("jobs", "pipeline")
OLDEST, NEWEST = (3, 11), (3, 13)
"""The versions of Python that this project was tried with."""


def _explain_broken_installation(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Stands for ``sys.excepthook``: commands import torch and others when they are read, before anything can be caught."""
    reason = _describe_broken_package(error)
    if reason is None:
        sys.__excepthook__(kind, error, traceback)
        return
    remedy = "make .venv, or the same pip install again, completes it; python -m jobs.doctor lists what is missing"
    print(f"error: the installation is not complete: {reason}; {remedy}", file=sys.stderr)
    raise SystemExit(2)  # the interpreter takes the exit code from here


def _describe_broken_package(error: BaseException) -> str | None:
    """Returns what is wrong with a package that cannot be imported; None for every other error, our own mistakes included."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in ("", *OWN):
        return str(error).splitlines()[0]
    if isinstance(error, RuntimeError) and "torchvision::" in str(error):
        both = "install both from the same index, at versions that belong together"
        return f"torchvision does not fit torch ({str(error).splitlines()[0]}): {both}"
    return None


def _describe_wrong_python(version: tuple[int, int]) -> str | None:
    """Returns what to do about a Python that is too old or too new; None for one that was tried."""
    if OLDEST <= version <= NEWEST:
        return None
    known = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    remedy = "install one of them, for example python3.11, and make the environment with it (docs/installation.md)"
    return f"this is Python {version[0]}.{version[1]}, and {known} are needed, for which Ray and decord have packages: {remedy}"


sys.excepthook = _explain_broken_installation
if sys.argv[:1] == ["-m"]:  # so it is while Python looks for the command that `python -m jobs.NAME` names
    gc.disable()  # until `command.run` has the imports behind it; see pipeline/processes/garbage.py
if wrong := _describe_wrong_python(sys.version_info[:2]):
    print(f"error: {wrong}", file=sys.stderr)
    raise SystemExit(2)
