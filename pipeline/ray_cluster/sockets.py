"""A short name for a long temporary folder: a path of a Unix socket has at most 107 bytes, and Ray's begin with TMPDIR.

Batch systems such as Slurm give each job a temporary folder with a long path. Ray's files stay in it; only its name is
replaced, by a symbolic link in a new folder of this user alone.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import UserError

SOCKET_BYTES = 107
"""The greatest length of a socket's path on Linux."""
BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_TaskEventsHead")
"""The length of the longest path that Ray 2.60 adds to its temporary folder."""
BELOW_OF_PYTHON = len("/pymp-12345678/listener-12345678")
"""The length of the longest path that Python's ``multiprocessing`` adds to TMPDIR."""
PREFIX = "anf-ray-"
PARENTS = (os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm")
LINK = "r"
_log = logging.getLogger(__name__)


def make_short_temporary_folder(folder: Path) -> str | None:
    """Makes a shorter path to ``folder``, Ray's temporary one, if its own path is too long; returns None if it is short enough.

    The new path, a link, is printed and is removed when this process ends, before which Ray must be ended: its processes use
    the name. A process that is killed leaves its link behind, which the next one removes. Raises UserError if no folder can
    hold the link.
    """
    if is_short_enough(folder):
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): set TMPDIR to a folder that can be written") from None
    link = make_link(folder, PARENTS)
    latest = folder / "session_latest"
    if latest.is_symlink() and not latest.exists():  # it led through a killed command's name; Ray replaces what exists only
        latest.unlink(missing_ok=True)
    _log.warning("%s is too long a path for Ray's sockets: %s is another name for it while this command runs", folder, link)
    return str(link)


@contextlib.contextmanager
def shorten_temporary_folder_of_children() -> Iterator[None]:
    """Gives the processes that are started within the ``with`` block a TMPDIR with a short path.

    A DataLoader's workers pass tensors through sockets in it and would otherwise wait forever; Ray's dashboard would not start.
    Raises UserError if no folder can hold the link.
    """
    before = os.environ.get("TMPDIR")
    folder = Path(tempfile.gettempdir())
    if not is_short_enough(folder, BELOW_OF_PYTHON):
        os.environ["TMPDIR"] = str(make_link(folder, PARENTS))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = before


def is_short_enough(folder: Path, below: int = BELOW) -> bool:
    """Returns whether the paths of sockets in ``folder``, which are ``below`` bytes longer, are short enough."""
    return len(os.fsencode(folder)) + below <= SOCKET_BYTES


def make_link(folder: Path, parents: Iterable[str]) -> Path:
    """Makes a link to ``folder`` inside a new folder, of mode 0700, in the first of ``parents`` that is safe and short enough.

    Raises UserError if none is.
    """
    for parent in map(Path, filter(None, parents)):
        if not (is_short_enough(parent / f"{PREFIX}12345678" / LINK) and _is_safe(parent)):
            continue
        remove_left_over(parent)
        with contextlib.suppress(OSError):  # full, or not writable
            own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # new, mode 0700, this user's
            if _lock(own) is None:  # else the system releases it when this process ends, however that is
                continue  # another process is about to remove it as left over
            (own / LINK).symlink_to(folder, target_is_directory=True)
            atexit.register(_remove, own)
            return own / LINK
    raise UserError(f"{folder} is too long a path for Ray's sockets: set RAY_TMPDIR to a folder with a short path")


def remove_left_over(parent: Path) -> None:
    """Removes from ``parent`` the folders that killed processes of this user left there, which are no longer locked."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            lock = _lock(folder)
            if lock is not None:
                _remove(folder)
                os.close(lock)


def _is_safe(parent: Path) -> bool:
    """Returns whether no other user can rename or remove what this user makes in ``parent``."""
    try:
        facts = parent.stat()
    except OSError:
        return False
    owned = facts.st_uid in (0, os.getuid())
    return owned and (bool(facts.st_mode & stat.S_ISVTX) or not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _lock(folder: Path) -> int | None:
    """Locks ``folder`` and returns the descriptor of the lock, or None if another process holds it.

    The folder itself, not a file in it as ``filelock`` would: so it can be removed while it is locked, and a link that another
    user puts in its place is not followed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / LINK).unlink(missing_ok=True)
        folder.rmdir()
