"""A lock that gives a folder on object storage one writer: an object ``.lock``, in addition to the lock of its local copy.

The object names its holder, which refreshes it as ``folder_lock`` refreshes a file, and other processes watch it in the same
way. Not all stores can create an object only if it does not exist. So the lock is written and, SETTLE_SECONDS later, read back:
the process that it names then holds it.

If the store does not respond, the holder does not end but keeps trying. It has lost the lock if the object names another
holder, or if two reads in a row find no object; then the process ends. ``require_lock`` checks the lock before every upload.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.errors import RunFailed
from pipeline.files import folder_lock, storage
from pipeline.files.folder_lock import LOCK, REFRESH_FAILED, describe_lost_lock, make_in_use_error
from pipeline.files.lock_holder import LockHolder, read_boot_id

SETTLE_SECONDS = 2.0
"""Time between writing a lock and reading it: of processes that write within this time, the last one holds it."""
_log = logging.getLogger(__name__)
_held: dict[str, str] = {}
"""The tokens of the locks that this process or, in a worker, its Ray driver holds, by the URIs of their folders."""


class StoreNotResponding(OSError):
    """Raised when the object store does not respond while its lock is acquired."""


@contextlib.contextmanager
def lock_store(store: str, folder: Path, remedy: str = "") -> Iterator[None]:
    """Makes this process the only writer of the folder at the URI ``store`` within the ``with`` block.

    ``folder``, its local copy, must be locked already. Within the block, the same folder can be locked again without effect.
    Raises FolderInUse once another holder is seen to refresh the lock, usually within HEARTBEAT_SECONDS, and
    StoreNotResponding if the store does not respond.
    """
    if store in _held:
        yield
        return
    status, released = folder.stat(), threading.Event()
    me = LockHolder.describe_this_process(uuid.uuid4().hex, f"{read_boot_id():x}:{status.st_dev}:{status.st_ino}:{folder}")
    try:
        _acquire(store, me, remedy)
    except OSError as error:
        raise StoreNotResponding(str(error)) from None
    _held[store] = me.token
    thread = threading.Thread(target=_refresh, args=(store, me, released), name="store-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        del _held[store]
        with contextlib.suppress(OSError):  # if it fails, the next process waits until the lock counts as dead
            holder = _read(store)
            if holder is not None and holder.token == me.token:
                storage.delete(f"{store}/{LOCK}")


def get_held_token(store: str | None) -> str | None:
    """Returns the token of the lock, which the driver passes to its workers; None if no lock is held."""
    return _held.get(store or "")


def adopt_lock(store: str | None, token: str | None) -> None:
    """Makes ``require_lock`` in this process, a worker, check the lock that its driver holds."""
    if store and token:
        _held[store] = token


def require_lock(store: str) -> None:
    """Raises RunFailed if the lock that this process or its driver acquired is no longer its own.

    Raises OSError if the store does not respond. Does nothing in a process that has acquired no lock.
    """
    token = _held.get(store)
    if token is None:
        return
    holder, is_ours = _check_holder(store, token, threading.Event())
    if not is_ours:
        raise RunFailed(f"{describe_lost_lock(store, holder)}; nothing was copied there")


def _acquire(store: str, me: LockHolder, remedy: str) -> None:
    holder, begun = _read(store), time.monotonic()
    # a holder with the same local folder has ended, since this process holds the lock of that folder
    while holder is not None and holder.place != me.place and time.monotonic() - begun < folder_lock.DEAD_SECONDS:
        time.sleep(min(1.0, folder_lock.HEARTBEAT_SECONDS / 4))
        before, holder = holder, _read(store)
        if holder is not None and holder != before:
            raise make_in_use_error(store, holder, remedy)
    _write(store, me)
    time.sleep(SETTLE_SECONDS)
    holder = _read(store)
    if holder is None or holder.token != me.token:
        raise make_in_use_error(store, holder, remedy)


def _refresh(store: str, me: LockHolder, released: threading.Event) -> None:
    """Refresh the lock until it is ``released``; end the process if the lock is lost."""
    was_unreachable = False
    while not released.wait(folder_lock.HEARTBEAT_SECONDS):
        try:
            holder, is_ours = _check_holder(store, me.token, released)
            if not is_ours:
                return folder_lock.end_process(describe_lost_lock(store, holder))
            me = replace(me, beat=me.beat + 1)
            _write(store, me)
            was_unreachable = False
        except Exception as error:  # catch everything: without this thread the lock would expire
            if not was_unreachable:
                _log.warning(REFRESH_FAILED, f"{store}/{LOCK}", error, folder_lock.HEARTBEAT_SECONDS)
            was_unreachable = True
    return None


def _check_holder(store: str, token: str, released: threading.Event) -> tuple[LockHolder | None, bool]:
    """The holder of the lock, and whether it is this process. If there is no lock, it is read again after HEARTBEAT_SECONDS."""
    holder = _read(store)
    if holder is None and not released.wait(folder_lock.HEARTBEAT_SECONDS):
        holder = _read(store)
        return holder, holder is not None and holder.token == token
    return holder, holder is None or holder.token == token


def _read(store: str) -> LockHolder | None:
    """The holder of the lock; None if there is no lock, or one that cannot be understood."""
    try:
        return LockHolder(**json.loads(storage.read_bytes(f"{store}/{LOCK}")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(store: str, me: LockHolder) -> None:
    storage.write_bytes(f"{store}/{LOCK}", json.dumps(asdict(me)).encode())
