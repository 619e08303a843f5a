"""A name that one process has at a time: a lock that the system gives back when its holder dies, by kill -9 too.

Two searches on one study, or a study whose driver was killed while a trial of it lives on for some seconds, must not write
into one run folder. ``flock`` works on local disks and on NFS 4 (Linux, EFS); a storage without it raises OSError.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Claim:
    """Holds ``path`` from a successful ``take`` until ``release`` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self, seconds: float = 0.0) -> bool:
        """Whether it is ours, within this time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._handle = handle
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(handle)
                    return False
                time.sleep(0.2)

    def release(self) -> None:
        """Let others have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def claimed(path: Path, seconds: float) -> Iterator[bool]:
    """Yields whether ``path`` could be claimed within this time; released afterward."""
    claim = Claim(path)
    taken = claim.take(seconds)
    try:
        yield taken
    finally:
        claim.release()
