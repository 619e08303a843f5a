"""Python's search for unreachable objects, kept away from what imports make.

Importing torch, timm and Ray makes a million objects that stay as long as the process. By default Python searches them again
and again while they are made, and once more when the process ends: a quarter of the CPU time of a command that ends early.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def exempt_imports() -> Iterator[None]:
    """Starts no search while packages are imported, and has no later search look at any object that is there at the end.

    Afterwards Python searches as before. Use it once per process and package: garbage that is there at the end stays.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
