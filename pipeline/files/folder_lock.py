"""One writer at a time for a folder that several processes and machines see: a run folder, a study's, a data set's.

The writer holds a lock file, ``.lock``, that names it, and refreshes it every HEARTBEAT_SECONDS. The library ``filelock``
does this on every file system on which one process can create a file that others then find there, NFS included; nothing
depends on the kernel's locks, which some network file systems only keep within one machine. Folders on object storage:
``store_lock``.

A process that died on this machine is recognized at once, by its process id and start time. One that died on another machine
is recognized by its heart: who asks watches the lock on its own clock, refuses when it is refreshed, and takes it over
when it was not for DEAD_SECONDS. A writer that finds its lock taken over or deleted ends at once, because two would write.
One that cannot reach its lock, because a server does not answer, tries again until it can.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import platform
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeGuard

from filelock import LeaseCompromise, OwnerRecord, SoftFileLease, Timeout

from pipeline.errors import UserError

LOCK = ".lock"
"""Name of the lock file in its folder. ``.lock.json`` beside it says more about its holder."""
HEARTBEAT_SECONDS = 10.0
"""Between two refreshments of a lock."""
DEAD_SECONDS = 60.0
"""Without a refreshment after which a holder on another machine counts as dead: five heartbeats may be late."""
POLL_SECONDS = 0.2
"""Between two looks at a lock that another process holds."""
FIRST_PID_SPACE = 0xEFFFFFFC
"""Number of the kernel's own namespace of process ids; filelock adds those of containers to the host's name."""
UNREACHABLE = "the lock %s cannot be refreshed (%s): this is tried again every %g s, and the command goes on"
"""For the log: the lock, the error, HEARTBEAT_SECONDS."""
_log = logging.getLogger(__name__)
_held: ContextVar[frozenset[Path]] = ContextVar("held folders", default=frozenset())


class FolderTaken(UserError):
    """Another process writes into the folder; the text says which, since when, and what can be done."""


class FolderNotWritable(UserError):
    """The folder cannot be made or written into: it is read-only, or the disk is full."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. Fields that are not known are empty."""

    host: str
    pid: int
    user: str = ""
    command: str = ""
    since: str = ""
    """ISO 8601, UTC."""
    token: str = ""
    """Of this one claim."""
    place: str = ""
    """The local folder behind an object store's lock: the kernel's boot, the disk, the folder."""
    beat: int = 0
    """Counts the refreshments of an object store's lock."""

    @classmethod
    def this_process(cls, token: str, place: str = "") -> Holder:
        """With the command that this process was started by."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError, ImportError):  # a container's user without a name
            user = str(os.getuid())
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(platform.node(), os.getpid(), user, command_line(), since, token, place)

    def __str__(self) -> str:
        words = [f"process {self.pid} on {self.host}", f"of user {self.user}" if self.user else ""]
        words += [f"since {self.since}" if self.since else "", f"`{self.command}`" if self.command else ""]
        return ", ".join(word for word in words if word)


def command_line() -> str:
    """How this process was called, as a shell takes it."""
    return shlex.join(["python", "-m", *sys.orig_argv[2:]] if sys.orig_argv[1:2] == ["-m"] else sys.argv)


# ---------------------------------------------------------------------------------------------------------- folders


@contextlib.contextmanager
def lock_folder(folder: Path, wait_seconds: float = 0.0, remedy: str = "", elsewhere: str = "") -> Iterator[None]:
    """Be the folder's only writer; make it where there is none, and remove it again where it is still empty afterward.

    Within it, the same folder can be locked again at no cost. Raises FolderTaken if another process holds it for longer than
    ``wait_seconds``, with ``remedy``; FolderNotWritable if the folder cannot be made or written into, with ``elsewhere``, which
    says where to write instead.
    """
    try:
        folder = folder.resolve()
        made = [one for one in (folder, *folder.parents) if not one.exists()]
    except (OSError, RuntimeError) as error:  # of a loop of symbolic links
        raise _unusable(folder, error, elsewhere) from None
    if folder in _held.get():
        yield
        return
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error, elsewhere) from None
        with lock_file(folder / LOCK, str(folder), wait_seconds, remedy, elsewhere):
            mark = _held.set(_held.get() | {folder})
            try:
                yield
            finally:
                _held.reset(mark)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for one in made:
                one.rmdir()


@contextlib.contextmanager
def lock_file(path: Path, what: str, wait_seconds: float = 0.0, remedy: str = "", elsewhere: str = "") -> Iterator[None]:
    """Be the only process that does what the file of this name stands for. Raises FolderTaken, which says ``what``;
    FolderNotWritable if the file cannot be written."""
    claim = Claim(path, elsewhere)
    if not claim.take(wait_seconds):
        raise taken(what, claim.holder(), remedy)
    try:
        yield
    finally:
        claim.release()


def _unusable(folder: Path, error: Exception, elsewhere: str) -> FolderNotWritable:
    what = f"folder {folder} cannot be made or written into: {getattr(error, 'strerror', None) or error}"
    return FolderNotWritable(f"{what}; {elsewhere}" if elsewhere else what)


TAKEN = "is being written by another process"
"""In the text of each FolderTaken."""


def taken(what: str, holder: Holder | None, remedy: str) -> FolderTaken:
    """What to raise where ``holder`` writes."""
    remedy = remedy or "wait until it has ended, stop it, or choose another folder"
    return FolderTaken(f"{what} {TAKEN}: {holder or 'one that has just ended'}; {remedy}")


def is_lock_file(path: Path) -> bool:
    """Whether a file in a folder belongs to its lock."""
    return path.name.startswith(LOCK)


class Claim:
    """A lock file that one process holds from a successful ``take`` until ``release`` or its end."""

    def __init__(self, path: Path, elsewhere: str = "") -> None:
        """``elsewhere``: what the user can do where the file cannot be written."""
        self.path, self._elsewhere = path, elsewhere
        self._lease: SoftFileLease | None = None
        self._over = threading.Event()
        self._about = path.with_name(f"{path.name}.json")
        self._seen: tuple[tuple[int, ...] | None, float] | None = None

    def take(self, seconds: float = 0.0, patient: bool = True) -> bool:
        """Whether it is ours, within this time.

        ``patient``: wait, beyond ``seconds``, until a holder on another machine is known to be alive or dead, which takes
        DEAD_SECONDS at most; without it, such a holder counts as alive. Raises FolderNotWritable.
        """
        self._over = threading.Event()
        lease = SoftFileLease(
            self.path, lease_duration=DEAD_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS,
            on_compromise=partial(_lost, self._over), thread_local=False, mode=0o664,
        )  # fmt: skip
        begun = time.monotonic()
        seen: set[tuple[int, ...]] = set()
        while not self._try(lease):
            unchanged, waited = self._unchanged_seconds(), time.monotonic() - begun
            seen |= {signature} if (signature := self._signature()) else set()  # none: it was taken away just now
            certain = _runs_here(lease.owner) or len(seen) > 1 or unchanged > DEAD_SECONDS + HEARTBEAT_SECONDS
            if waited >= seconds and (certain or not patient):
                return False
            time.sleep(POLL_SECONDS)
        self._lease = lease
        token = lease.token or ""
        with contextlib.suppress(OSError):  # it only makes messages better
            _write_whole(self._about, json.dumps(asdict(Holder.this_process(token))))
        return True

    def holder(self) -> Holder | None:
        """Who holds it, None if nobody does."""
        owner = SoftFileLease(self.path, lease_duration=DEAD_SECONDS).owner
        if owner is None:
            return None
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = Holder(**json.loads(self._about.read_text(encoding="utf-8")))
            if known.token == owner.token:
                return known
        return Holder(owner.hostname.partition("?")[0], owner.pid)

    def release(self) -> None:
        """Let others have it."""
        self._over.set()
        lease, self._lease = self._lease, None
        if lease is not None:
            with contextlib.suppress(OSError):
                self._about.unlink(missing_ok=True)
                lease.release()

    def _try(self, lease: SoftFileLease) -> bool:
        """One attempt. The library only makes the file: it would ask a pod of this machine's name for its process id here, and
        takes no dead lock over on NFS, which cannot exchange two names."""
        watched = self._signature()
        if watched is not None:
            owner = lease.owner
            died_here = _is_of_this_machine(owner) and not _runs_here(owner)
            silent = self._unchanged_seconds() >= DEAD_SECONDS and not _runs_here(owner)
            if not died_here and not silent:
                return False
        try:
            if watched is not None:
                self._remove(watched)
            lease.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # another was faster; or it removed the folder, which it had left empty
            return False
        except OSError as error:
            raise _unusable(self.path.parent, error, self._elsewhere) from None
        return True

    def _remove(self, watched: tuple[int, ...]) -> None:
        """Remove the lock file of a dead process, unless it is another by now: of two that try, one is too late."""
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            if self._signature() != watched:
                return
            os.rename(self.path, aside)
            moved = aside.stat()
            if (moved.st_ino, moved.st_mtime_ns) != watched:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _signature(self) -> tuple[int, ...] | None:
        """Of the lock file as it is now; opened, because NFS clients remember what a mere look at a name said."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _unchanged_seconds(self) -> float:
        """For how long this object has seen the lock file as it is."""
        now, signature = time.monotonic(), self._signature()
        if self._seen is None or self._seen[0] != signature:
            self._seen = signature, now
        return now - self._seen[1]


def _write_whole(path: Path, text: str) -> None:
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def boot_id() -> int:
    """Of this machine's kernel; 0 where it does not tell."""
    try:
        return int(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0


def _since_this_boot(owner: OwnerRecord | None) -> TypeGuard[OwnerRecord]:
    """Whether a holder began under the kernel that runs here: its ``start`` has the kernel's boot and the process's start."""
    return owner is not None and bool(owner.start and boot_id()) and (owner.start or 0) >> 64 == boot_id()


def _is_of_this_machine(owner: OwnerRecord | None) -> bool:
    """Whether a holder's process id means something here: the kernel has not been started anew since, and it is no other
    container's. A name is not enough: a replaced pod has the name of the one that may still run elsewhere."""
    if not _since_this_boot(owner):
        return False
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False
    return owner.hostname == socket.gethostname() + ("" if space == FIRST_PID_SPACE else f"?pidns-{space:x}")


def _runs_here(owner: OwnerRecord | None) -> bool:
    """Whether a holder is a process of this machine that lives; one that ended and was not waited for does not."""
    if not _since_this_boot(owner):
        return False
    try:
        state, *fields = Path(f"/proc/{owner.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return False
    return state not in "ZX" and int(fields[18]) == (owner.start or 0) % 2**64


def _lost(over: threading.Event, compromise: LeaseCompromise) -> None:
    """Called by the library's thread that refreshes a lock when it gives up; ``over`` is set when the lock is released.

    A file that could not be reached for nearly DEAD_SECONDS is tried again here: only when the file system answers does it
    show whether another process took the lock over.
    """
    path, misses = Path(compromise.lock_file), 0
    if compromise.reason == "refresh-failed":
        _log.warning(UNREACHABLE, path, compromise.error, HEARTBEAT_SECONDS)
    while compromise.reason == "refresh-failed" and misses < 2:
        if over.wait(HEARTBEAT_SECONDS):
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
    end_process(lost(str(path.parent), Claim(path).holder()))


def lost(what: str, holder: Holder | None) -> str:
    """What became of the lock that this process had; ``holder`` has it now."""
    if holder is None:
        return f"the lock of {what} is gone: it was deleted, or taken over by a process that has ended"
    return f"the lock of {what} is taken over by {holder}: it was not refreshed for {DEAD_SECONDS:g} s, or was deleted"


def end_process(reason: str) -> None:
    """At once: whatever this process went on to write would be among another's files."""
    remedy = "This process ends, so that two do not write; the same command continues when no other process writes there"
    print(f"failed: {reason}. {remedy}", file=sys.stderr, flush=True)
    os._exit(1)
