"""One writer at a time for a folder on object storage: an object ``.lock``, beside the lock of the local folder.

It names its holder, who refreshes it as ``folder_lock`` does a file, and who asks watches it in the same way. Stores do not all
know "create, unless it is there": a lock is written, read again SETTLE_SECONDS later, and belongs to the one whose it still is.

A store that does not answer ends nobody: the holder tries again until it does. Only what the store says then counts: a lock
that is another's by now, or twice in a row not there, ends the process. Before results are copied, ``require_lock`` looks.
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
from pipeline.files.folder_lock import LOCK, UNREACHABLE, Holder, boot_id, lost, taken

SETTLE_SECONDS = 2.0
"""Between writing a lock and reading it again: of two processes that write within this time the later one has the lock."""
_log = logging.getLogger(__name__)
_held: dict[str, str] = {}
"""Folder on a store -> token of its lock, which this process, or the driver that it works for, took."""


class StoreSilent(OSError):
    """The object store did not answer when its lock was to be taken."""


@contextlib.contextmanager
def lock_store(store: str, folder: Path, remedy: str = "") -> Iterator[None]:
    """Be the only writer of the folder at the URI ``store``. ``folder``, its local copy, must be locked already.

    Within it, the same folder can be locked again at no cost. Raises FolderTaken, after HEARTBEAT_SECONDS or a little more;
    StoreSilent if the store does not answer.
    """
    if store in _held:
        yield
        return
    status, over = folder.stat(), threading.Event()
    me = Holder.this_process(uuid.uuid4().hex, f"{boot_id():x}:{status.st_dev}:{status.st_ino}:{folder}")
    try:
        _take(store, me, remedy)
    except OSError as error:
        raise StoreSilent(str(error)) from None
    _held[store] = me.token
    thread = threading.Thread(target=_refresh, args=(store, me, over), name="store-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        del _held[store]
        with contextlib.suppress(OSError):  # the next process waits for a while then
            holder = _read(store)
            if holder is not None and holder.token == me.token:
                storage.delete(f"{store}/{LOCK}")


def held_token(store: str | None) -> str | None:
    """Of the lock that this process holds, for a worker of it."""
    return _held.get(store or "")


def work_under(store: str | None, token: str | None) -> None:
    """Let ``require_lock`` of this process, a worker, look at the lock that its driver holds."""
    if store and token:
        _held[store] = token


def require_lock(store: str) -> None:
    """Raises RunFailed if the lock that this process, or its driver, took there is not theirs any more; OSError if the store
    does not answer. A process that took none is not asked for one."""
    token = _held.get(store)
    if token is None:
        return
    holder, ours = _look(store, token, threading.Event())
    if not ours:
        raise RunFailed(f"{lost(store, holder)}; nothing was copied there")


def _take(store: str, me: Holder, remedy: str) -> None:
    holder, begun = _read(store), time.monotonic()
    # whoever held it with the same local folder is gone, for we hold that folder
    while holder is not None and holder.place != me.place and time.monotonic() - begun < folder_lock.DEAD_SECONDS:
        time.sleep(min(1.0, folder_lock.HEARTBEAT_SECONDS / 4))
        before, holder = holder, _read(store)
        if holder is not None and holder != before:
            raise taken(store, holder, remedy)
    _write(store, me)
    time.sleep(SETTLE_SECONDS)
    holder = _read(store)
    if holder is None or holder.token != me.token:
        raise taken(store, holder, remedy)


def _refresh(store: str, me: Holder, over: threading.Event) -> None:
    """Until ``over``, or until the lock is not ours."""
    silent = False
    while not over.wait(folder_lock.HEARTBEAT_SECONDS):
        try:
            holder, ours = _look(store, me.token, over)
            if not ours:
                return folder_lock.end_process(lost(store, holder))
            me = replace(me, beat=me.beat + 1)
            _write(store, me)
            silent = False
        except Exception as error:  # whatever it is: without this thread another process would take the lock over
            if not silent:
                _log.warning(UNREACHABLE, f"{store}/{LOCK}", error, folder_lock.HEARTBEAT_SECONDS)
            silent = True
    return None


def _look(store: str, token: str, over: threading.Event) -> tuple[Holder | None, bool]:
    """Who holds the lock, and whether it is ours. One that is not there is looked for again after HEARTBEAT_SECONDS."""
    holder = _read(store)
    if holder is None and not over.wait(folder_lock.HEARTBEAT_SECONDS):
        holder = _read(store)
        return holder, holder is not None and holder.token == token
    return holder, holder is None or holder.token == token


def _read(store: str) -> Holder | None:
    """None without a lock, or with one that nobody understands."""
    try:
        return Holder(**json.loads(storage.read_bytes(f"{store}/{LOCK}")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(store: str, me: Holder) -> None:
    storage.write_bytes(f"{store}/{LOCK}", json.dumps(asdict(me)).encode())
