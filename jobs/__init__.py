"""The commands, a file each. Importing any of them makes a broken installation end with a message instead of a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

OWN = ("jobs", "pipeline")


def _explain_broken_installation(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Stands for ``sys.excepthook``: commands import torch and others when they are read, before anything can be caught."""
    reason = _describe_broken_package(error)
    if reason is None:
        sys.__excepthook__(kind, error, traceback)
        return
    remedy = "actnetformer doctor lists what is missing or does not fit; docs/installation.md says how to install it"
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


sys.excepthook = _explain_broken_installation
