"""Who holds a lock: a process, described for people, and recognized by its process id and start time on this machine."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard

from filelock import OwnerRecord

from pipeline.files.url_passwords import hide_passwords

FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the kernel's first process id namespace. To a holder's host name, filelock adds the namespace of a container."""
_users_command: str | None = None
"""Set in processes that do the work of another one's command."""


@dataclass(frozen=True)
class LockHolder:
    """The process that holds a lock. Unknown fields are empty. A lock on an object store has these fields as JSON."""

    host: str
    pid: int
    user: str = ""
    command: str = ""
    since: str = ""
    """Time at which the lock was acquired, as ISO 8601 in UTC."""
    token: str = ""
    """Random text that is unique to each acquisition."""
    place: str = ""
    """For a lock on an object store: the folder's local copy, as the kernel's boot id, the disk, the inode and the path."""
    beat: int = 0
    """For a lock on an object store: how often it was refreshed."""

    @classmethod
    def describe_this_process(cls, token: str, place: str = "") -> LockHolder:
        """Describes this process, with the command that started it."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError, ImportError):  # a container's user without a name
            user = str(os.getuid())
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(platform.node(), os.getpid(), user, get_command_line(), since, token, place)

    def __str__(self) -> str:
        words = [f"process {self.pid} on {self.host}", f"of user {self.user}" if self.user else ""]
        words += [f"since {self.since}" if self.since else "", f"`{self.command}`" if self.command else ""]
        return ", ".join(word for word in words if word)


def get_command_line() -> str:
    """Returns the command that the user gave, quoted for a shell, without passwords in URLs.

    It is the one that started this process or, in a process that Ray started, the one handed to ``set_command_line``.
    """
    own = shlex.join(["python", "-m", *sys.orig_argv[2:]] if sys.orig_argv[1:2] == ["-m"] else sys.argv)
    return hide_passwords(_users_command or own)


def set_command_line(command: str) -> None:
    """Makes ``get_command_line`` return ``command`` in this process, which works for the process that the command started."""
    global _users_command
    _users_command = command


def read_boot_id() -> int:
    """Returns the id that this machine's kernel chose when it was started; 0 where it cannot be read."""
    try:
        return int(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0


def _began_since_boot(owner: OwnerRecord | None) -> TypeGuard[OwnerRecord]:
    """Whether a holder began since this machine was started: ``start`` holds the kernel's boot id and the process's start."""
    return owner is not None and bool(owner.start and read_boot_id()) and (owner.start or 0) >> 64 == read_boot_id()


def is_on_this_machine(owner: OwnerRecord | None) -> bool:
    """Whether a holder's process id is one of this machine, since its last start, and not one of another container.

    The host name is not enough: a replaced pod has the name of the one that may still run elsewhere.
    """
    if not _began_since_boot(owner):
        return False
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False
    return owner.hostname == socket.gethostname() + ("" if namespace == FIRST_PID_NAMESPACE else f"?pidns-{namespace:x}")


def is_running_here(owner: OwnerRecord | None) -> bool:
    """Whether a holder is a running process of this machine; one that ended and whose parent has not noticed it is not."""
    if not _began_since_boot(owner):
        return False
    try:
        state, *fields = Path(f"/proc/{owner.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return False
    return state not in "ZX" and int(fields[18]) == (owner.start or 0) % 2**64
