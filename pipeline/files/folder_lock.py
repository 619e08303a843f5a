"""A lock that gives a folder one writer among several processes and machines: a run's folder, a study's, a data set's.

``LockFile`` alone also serves as a claim, of a search on one of its trials for example.

The writer holds a lock file, ``.lock``, that names it, and refreshes the file every HEARTBEAT_SECONDS. The library
``filelock`` does this on every file system on which one process can create a file that others then find, NFS included. It
needs no locks of the kernel, which some network file systems only keep within one machine. ``store_lock`` locks folders on
object storage.

A process that died on this machine is recognized at once by its process id and start time. One that died on another machine
is recognized because it no longer refreshes its lock: a process that wants the lock watches the file and times it by its own
clock. It gives up as soon as the lock is refreshed, and takes the lock over if it is not refreshed for DEAD_SECONDS. A writer
whose lock was taken over or deleted ends at once, since otherwise two processes would write. A writer that cannot reach its
lock, because a server does not respond, keeps trying.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from pipeline.errors import UserError
from pipeline.files.lock_holder import LockHolder, is_on_this_machine, is_running_here

LOCK = ".lock"
"""Name of the lock file in its folder. ``.lock.json`` beside it says more about its holder."""
HEARTBEAT_SECONDS = 10.0
"""Time between two refreshes of a lock."""
DEAD_SECONDS = 60.0
"""Time without a refresh after which a holder on another machine counts as dead; so five refreshes in a row may be missed."""
POLL_SECONDS = 0.2
"""Time between two checks of a lock that another process holds."""
REFRESH_FAILED = "the lock file %s could not be written (%s); the command continues, and tries again every %g s"
"""Message for the log, with the lock, the error and HEARTBEAT_SECONDS."""
_log = logging.getLogger(__name__)
_held: ContextVar[frozenset[Path]] = ContextVar("held folders", default=frozenset())


class FolderInUse(UserError):
    """Raised when another process writes into the folder; the text says which, since when, and what the user can do."""


class FolderNotWritable(UserError):
    """Raised when the folder cannot be made or written into, because it is read-only or the disk is full."""


@contextlib.contextmanager
def lock_folder(folder: Path, wait_seconds: float = 0.0, remedy: str = "", elsewhere: str = "") -> Iterator[None]:
    """Makes this process the folder's only writer within the ``with`` block.

    The folder is made if it does not exist, and removed afterward if it is still empty. Within the block, the same folder can
    be locked again without effect. Raises FolderInUse, with ``remedy``, if another process holds the lock for longer than
    ``wait_seconds``. Raises FolderNotWritable, with ``elsewhere``, if the folder cannot be made or written into. Both
    end the message: they tell the user what to do.
    """
    try:
        folder = folder.resolve()
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        raise _make_not_writable_error(folder, error, elsewhere) from None
    if folder in _held.get():
        yield
        return
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _make_not_writable_error(folder, error, elsewhere) from None
        with lock_file(folder / LOCK, str(folder), wait_seconds, remedy, elsewhere):
            previous = _held.set(_held.get() | {folder})
            try:
                yield
            finally:
                _held.reset(previous)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def lock_file(path: Path, what: str, wait_seconds: float = 0.0, remedy: str = "", elsewhere: str = "") -> Iterator[None]:
    """Makes this process the only holder of a lock file within the ``with`` block.

    Raises FolderInUse, whose text begins with ``what``, if another process holds it for longer than ``wait_seconds``, and
    FolderNotWritable if the file cannot be written.
    """
    lock = LockFile(path, elsewhere)
    if not lock.acquire(wait_seconds):
        raise make_in_use_error(what, lock.get_holder(), remedy)
    try:
        yield
    finally:
        lock.release()


def _make_not_writable_error(folder: Path, error: Exception, elsewhere: str) -> FolderNotWritable:
    what = f"folder {folder} cannot be made or written into: {getattr(error, 'strerror', None) or error}"
    return FolderNotWritable(f"{what}; {elsewhere or 'choose another folder, or change who may write there'}")


IN_USE = "is being written by another process"
"""Words in the text of every FolderInUse, by which other code recognizes it."""


def make_in_use_error(what: str, holder: LockHolder | None, remedy: str) -> FolderInUse:
    """Makes the error to raise where ``holder`` holds the lock of ``what``."""
    remedy = remedy or "wait until it has ended, stop it, or choose another folder"
    return FolderInUse(f"{what} {IN_USE}: {holder or 'one that has just ended'}; {remedy}")


def find_writer(folder: Path) -> LockHolder | None:
    """Finds the process that writes into a folder; None if none does, as far as a look can tell.

    A process of another machine counts if it refreshed its lock within DEAD_SECONDS, by this machine's clock.
    """
    path = folder / LOCK
    owner = SoftFileLease(path, lease_duration=DEAD_SECONDS).owner
    try:
        is_fresh = time.time() - path.stat().st_mtime < DEAD_SECONDS
    except OSError:
        return None
    is_alive = is_running_here(owner) or (is_fresh and not is_on_this_machine(owner))
    return LockFile(path).get_holder() if is_alive else None


def is_lock_file(path: Path) -> bool:
    """Whether a file in a folder belongs to the folder's lock."""
    return path.name.startswith(LOCK)


class LockFile:
    """A lock file that a process holds from a successful ``acquire`` until ``release`` or until the process ends."""

    def __init__(self, path: Path, elsewhere: str = "") -> None:
        """``elsewhere`` says what the user can do if the file cannot be written."""
        self.path, self._elsewhere = path, elsewhere
        self._lease: SoftFileLease | None = None
        self._released = threading.Event()
        self._details = path.with_name(f"{path.name}.json")
        self._last_seen: tuple[tuple[int, ...] | None, float] | None = None

    def acquire(self, seconds: float = 0.0, until_certain: bool = True) -> bool:
        """Tries to acquire the lock for ``seconds``; returns whether this process has it.

        If ``until_certain``, it waits beyond ``seconds`` until a holder on another machine is known to be alive or dead, for at
        most DEAD_SECONDS + HEARTBEAT_SECONDS; otherwise such a holder counts as alive. Raises FolderNotWritable.
        """
        self._released = threading.Event()
        lease = SoftFileLease(
            self.path, lease_duration=DEAD_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS,
            on_compromise=partial(_handle_lost_lease, self._released), thread_local=False, mode=0o664,
        )  # fmt: skip
        begun = time.monotonic()
        signatures: set[tuple[int, ...]] = set()
        while not self._try_once(lease):
            unchanged, waited = self._measure_unchanged_seconds(), time.monotonic() - begun
            if signature := self._read_signature():  # None: it was released just now
                signatures.add(signature)
            was_refreshed = len(signatures) > 1
            is_certain = is_running_here(lease.owner) or was_refreshed or unchanged > DEAD_SECONDS + HEARTBEAT_SECONDS
            if waited >= seconds and (is_certain or not until_certain):
                return False
            time.sleep(POLL_SECONDS)
        self._lease = lease
        token = lease.token or ""
        with contextlib.suppress(OSError):  # the details are only for messages
            _write_atomically(self._details, json.dumps(asdict(LockHolder.describe_this_process(token))))
        return True

    def get_holder(self) -> LockHolder | None:
        """Returns the process that holds the lock, or None if none does."""
        owner = SoftFileLease(self.path, lease_duration=DEAD_SECONDS).owner
        if owner is None:
            return None
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = LockHolder(**json.loads(self._details.read_text(encoding="utf-8")))
            if known.token == owner.token:
                return known
        return LockHolder(owner.hostname.partition("?")[0], owner.pid)

    def release(self) -> None:
        """Releases the lock, if this object holds it."""
        self._released.set()
        lease, self._lease = self._lease, None
        if lease is not None:
            with contextlib.suppress(OSError):
                self._details.unlink(missing_ok=True)
                lease.release()

    def _try_once(self, lease: SoftFileLease) -> bool:
        """Try to acquire the lock, after removing that of a dead process.

        The library is only used to create the file. It would mistake a replaced pod with this machine's name for this machine,
        and look for its process id here; and on NFS, which cannot exchange two names, it takes over no dead process's lock.
        """
        watched = self._read_signature()
        if watched is not None:
            owner = lease.owner
            has_died_here = is_on_this_machine(owner) and not is_running_here(owner)
            is_silent = self._measure_unchanged_seconds() >= DEAD_SECONDS and not is_running_here(owner)
            if not has_died_here and not is_silent:
                return False
        try:
            if watched is not None:
                self._remove(watched)
            lease.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # another process was faster, or removed the folder because it was empty
            return False
        except OSError as error:
            raise _make_not_writable_error(self.path.parent, error, self._elsewhere) from None
        return True

    def _remove(self, watched: tuple[int, ...]) -> None:
        """Remove the lock file of a dead process, unless another process has replaced it: of two that try, one is too late."""
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            if self._read_signature() != watched:
                return
            os.rename(self.path, aside)
            moved = aside.stat()
            if (moved.st_ino, moved.st_mtime_ns) != watched:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _read_signature(self) -> tuple[int, ...] | None:
        """The lock file's inode and time of change. The file is opened because NFS clients cache the attributes of names."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _measure_unchanged_seconds(self) -> float:
        """For how many seconds this object has seen the lock file without a change."""
        now, signature = time.monotonic(), self._read_signature()
        if self._last_seen is None or self._last_seen[0] != signature:
            self._last_seen = signature, now
        return now - self._last_seen[1]


def _write_atomically(path: Path, text: str) -> None:
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _handle_lost_lease(released: threading.Event, compromise: LeaseCompromise) -> None:
    """End the process if its lock was lost. The library's thread calls this when it gives up refreshing the lock.

    If the file could not be reached for nearly DEAD_SECONDS, refreshing is tried again here: only when the file system
    responds does it show whether another process took the lock over. ``released`` is set when this process has released it.
    """
    path, misses = Path(compromise.lock_file), 0
    if compromise.reason == "refresh-failed":
        _log.warning(REFRESH_FAILED, path, compromise.error, HEARTBEAT_SECONDS)
    while compromise.reason == "refresh-failed" and misses < 2:
        if released.wait(HEARTBEAT_SECONDS):
            return
        try:
            if compromise.token.encode() not in path.read_bytes():
                break
            os.utime(path)
            misses = 0
        except FileNotFoundError:
            misses += 1
        except OSError:
            continue
    end_process(describe_lost_lock(str(path.parent), LockFile(path).get_holder()))


def describe_lost_lock(what: str, holder: LockHolder | None) -> str:
    """Describes how this process lost the lock of ``what``; ``holder`` has it now."""
    if holder is None:
        return f"this process lost the lock of {what}: it was deleted, or taken by a process that has ended"
    why = f"it was not refreshed for {DEAD_SECONDS:g} s, or was deleted"
    return f"this process lost the lock of {what}, because {why}; now it is held by {holder}"


def end_process(reason: str) -> None:
    """Ends this process at once, since anything it still wrote would be mixed with the files of another process."""
    remedy = "This process ends so that no two processes write there; run the same command again when no other one writes there"
    print(f"failed: {reason}. {remedy}", file=sys.stderr, flush=True)
    os._exit(1)
