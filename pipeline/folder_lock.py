"""One writer at a time for a folder that several processes and machines see: a run folder, a study's, a data set's.

The writer holds a lock file, ``.lock``, that names it, and refreshes it every HEARTBEAT_SECONDS. The library ``filelock``
does this on every file system on which one process can create a file that others then find there, NFS included; nothing
depends on the kernel's locks, which some network file systems only keep within one machine. A folder on object storage has
an object ``.lock`` of the same meaning beside the local folder's lock.

A process that died on this machine is recognized at once, by its process id and start time. One that died on another machine
is recognized by its heart: who asks watches the lock on its own clock, refuses when it is refreshed, and takes it over
when it was not for DEAD_SECONDS. A writer that finds its lock taken over ends at once, because two would write.
"""

from __future__ import annotations

import contextlib
import getpass
import json
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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import LeaseCompromise, OwnerRecord, SoftFileLease, Timeout

from pipeline import storage
from pipeline.errors import UserError

LOCK = ".lock"
"""Name of the lock file in its folder. ``.lock.json`` beside it says more about its holder."""
HEARTBEAT_SECONDS = 10.0
"""Between two refreshments of a lock."""
DEAD_SECONDS = 60.0
"""Without a refreshment after which a holder on another machine counts as dead: five heartbeats may be late."""
POLL_SECONDS = 0.2
"""Between two looks at a lock that another process holds."""
SETTLE_SECONDS = 2.0
"""Between writing a lock to an object store and reading it again: stores know no "create, unless it is there", and of two
processes that write within this time the later one has the lock."""
FIRST_PID_SPACE = 0xEFFFFFFC
"""Number of the kernel's own namespace of process ids; filelock adds those of containers to the host's name."""
_held: ContextVar[frozenset[Path]] = ContextVar("held folders", default=frozenset())


class FolderTaken(UserError):
    """Another process writes into the folder; the text says which, since when, and what can be done."""


class StoreSilent(OSError):
    """The object store did not answer when its lock was to be taken."""


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
def lock_folder(folder: Path, wait_seconds: float = 0.0, store: str | None = None, remedy: str = "") -> Iterator[None]:
    """Be the folder's only writer; make it where there is none, and remove it again where it is still empty afterward.

    ``store``: URI of the folder on object storage that ``folder`` is the local copy of. Within it, the same folder can be
    locked again at no cost. Raises FolderTaken if another process holds it for longer than ``wait_seconds``; UserError if the
    folder cannot be made or written into; StoreSilent if the store does not answer.
    """
    folder = folder.resolve()
    if folder in _held.get():
        yield
        return
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    claim = Claim(folder / LOCK)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = claim.take(wait_seconds)
        except OSError as error:
            raise UserError(f"folder {folder} cannot be made or written into: {error.strerror or error}") from None
        if not taken:
            raise _taken(str(folder), claim.holder(), remedy)
        with StoreClaim(store, folder, remedy) if store else contextlib.nullcontext():
            mark = _held.set(_held.get() | {folder})
            try:
                yield
            finally:
                _held.reset(mark)
    finally:
        claim.release()
        with contextlib.suppress(OSError):  # not empty
            for one in made:
                one.rmdir()


@contextlib.contextmanager
def lock_file(path: Path, what: str, wait_seconds: float = 0.0, remedy: str = "") -> Iterator[None]:
    """Be the only process that does what the file of this name stands for. Raises FolderTaken, which says ``what``."""
    claim = Claim(path)
    if not claim.take(wait_seconds):
        raise _taken(what, claim.holder(), remedy)
    try:
        yield
    finally:
        claim.release()


TAKEN = "is being written by another process"
"""In the text of each FolderTaken."""


def _taken(what: str, holder: Holder | None, remedy: str) -> FolderTaken:
    remedy = remedy or "wait until it has ended, stop it, or choose another folder"
    return FolderTaken(f"{what} {TAKEN}: {holder or 'one that has just ended'}; {remedy}")


def is_lock_file(path: Path) -> bool:
    """Whether a file in a folder belongs to its lock."""
    return path.name.startswith(LOCK)


class Claim:
    """A lock file that one process holds from a successful ``take`` until ``release`` or its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lease: SoftFileLease | None = None
        self._about = path.with_name(f"{path.name}.json")
        self._seen: tuple[tuple[int, ...] | None, float] | None = None

    def take(self, seconds: float = 0.0, patient: bool = True) -> bool:
        """Whether it is ours, within this time.

        ``patient``: wait, beyond ``seconds``, until a holder on another machine is known to be alive or dead, which takes
        DEAD_SECONDS at most; without it, such a holder counts as alive. Raises OSError if the file cannot be written.
        """
        lease = SoftFileLease(
            self.path, lease_duration=DEAD_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS, on_compromise=_lost,
            thread_local=False, mode=0o664,
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
            self._remove(watched)
        try:
            lease.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # another was faster; or it removed the folder, which it had left empty
            return False
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


def _boot() -> int:
    """Of this machine's kernel; 0 where it does not tell."""
    try:
        return int(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0


def _is_of_this_machine(owner: OwnerRecord | None) -> bool:
    """Whether a holder's process id means something here: the kernel has not been started anew since, and it is no other
    container's. A name is not enough: a replaced pod has the name of the one that may still run elsewhere."""
    if owner is None or not owner.start or not _boot() or owner.start >> 64 != _boot():  # filelock's: boot, start of process
        return False
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False
    return owner.hostname == socket.gethostname() + ("" if space == FIRST_PID_SPACE else f"?pidns-{space:x}")


def _runs_here(owner: OwnerRecord | None) -> bool:
    """Whether a holder is a process of this machine that lives; one that ended and was not waited for does not."""
    if owner is None or not owner.start or not _boot() or owner.start >> 64 != _boot():
        return False
    try:
        state, *fields = Path(f"/proc/{owner.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return False
    return state not in "ZX" and int(fields[18]) == owner.start % 2**64


def _lost(compromise: LeaseCompromise) -> None:
    """Called from the thread that refreshes a lock that is no longer ours."""
    path = Path(compromise.lock_file)
    _end(f"the lock of {path.parent}", Claim(path).holder(), f"{compromise.reason}: {compromise.error or ''}".rstrip(": "))


def _end(what: str, holder: Holder | None, reason: str) -> None:
    """At once: whatever this process went on to write would be among another's files."""
    who = f"taken over by {holder}" if holder else f"gone ({reason})"
    text = (
        f"failed: {what} is {who}: this process stood still for longer than {DEAD_SECONDS:g} s, or its folder was removed. It "
        "ends, so that two do not write; the same command continues when the other has ended"
    )
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


# ----------------------------------------------------------------------------------------------------- object stores


class StoreClaim:
    """The lock of a folder on object storage; a context. ``folder``, its local copy, must be locked already."""

    def __init__(self, store: str, folder: Path, remedy: str = "") -> None:
        self.store, self.uri, self.remedy = store, f"{store}/{LOCK}", remedy
        status = folder.stat()
        self._me = Holder.this_process(uuid.uuid4().hex, f"{_boot():x}:{status.st_dev}:{status.st_ino}:{folder}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="store-lock", daemon=True)

    def __enter__(self) -> None:
        """Raises FolderTaken, after HEARTBEAT_SECONDS or a little more; StoreSilent if the store does not answer."""
        try:
            self._take()
        except OSError as error:
            raise StoreSilent(str(error)) from None
        self._thread.start()

    def _take(self) -> None:
        holder, begun = self._read(), time.monotonic()
        # whoever held it with the same local folder is gone, for we hold that folder
        while holder is not None and holder.place != self._me.place and time.monotonic() - begun < DEAD_SECONDS:
            time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))
            before, holder = holder, self._read()
            if holder is not None and holder != before:
                raise _taken(self.store, holder, self.remedy)
        self._write()
        time.sleep(SETTLE_SECONDS)
        holder = self._read()
        if holder is None or holder.token != self._me.token:
            raise _taken(self.store, holder, self.remedy)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the next process waits for a while then
            holder = self._read()
            if holder is not None and holder.token == self._me.token:
                storage.delete(self.uri)

    def _read(self) -> Holder | None:
        """None without a lock, or with one that nobody understands."""
        try:
            return Holder(**json.loads(storage.read_bytes(self.uri)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self) -> None:
        storage.write_bytes(self.uri, json.dumps(asdict(self._me)).encode())

    def _refresh(self) -> None:
        heard = time.monotonic()
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                holder = self._read()
                if holder is None or holder.token != self._me.token:
                    return _end(f"the lock of {self.store}", holder, "it was deleted")
                self._me = replace(self._me, beat=self._me.beat + 1)
                self._write()
                heard = time.monotonic()
            except OSError as error:
                if time.monotonic() - heard > DEAD_SECONDS:
                    return _end(f"the lock of {self.store}", None, f"the store does not answer: {error}")
        return None
