"""One command at a time writes into a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError


@contextlib.contextmanager
def reserved(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Make a folder where there is none, and keep other commands out of it; one that is still empty then is removed again.

    The lock is the kernel's, on the folder itself: it ends with this process, however that ends, and leaves no file.
    Raises UserError where another command has it for longer than ``wait_seconds``, and where the folder cannot be made.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made or opened: {error.strerror}") from None
    try:
        _lock(lock, folder, time.monotonic() + wait_seconds)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty
                for place in made:
                    place.rmdir()
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path, until: float) -> None:
    try:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    text = f"another command is writing into {folder}; wait until it is done, or choose another folder"
                    raise UserError(text) from None
            time.sleep(0.1)
    except OSError as error:  # some network file systems
        print(f"note: {folder} knows no locks ({error.strerror}): see that no other command writes into it", file=sys.stderr)
