"""Replaces a folder by another one so that, whenever the process is killed, the old or the new one is there whole.

Linux exchanges two names at once on most file systems. On others, such as NFS, the old folder is renamed first, to a hidden
name that ends in ``.earlier``. A process that is killed before it has renamed the new one leaves neither at its place; the next
one that locks the output puts the old folder back before it does anything else.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files.disk import sync_to_disk
from pipeline.files.folder_lock import lock_file

EARLIER = ".earlier"
"""The end of the name of an old folder that was moved aside."""
RENAME_EXCHANGE, AT_FDCWD = 2, -100
"""Constants of renameat2(2)."""
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextmanager
def lock_output(out: Path) -> Iterator[Path]:
    """Makes this process the only one that writes ``out``, and yields its path without symbolic links. Raises UserError.

    What a killed process moved aside is put back.
    """
    try:
        out = out.expanduser().resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        raise UserError(f"{out} cannot be written: {getattr(error, 'strerror', None) or error}; choose another OUT") from None
    if not out.name:
        raise UserError(f"{out} is the root of all folders: choose another OUT")
    remedy = "wait until it has ended, stop it, or choose another OUT"
    with lock_file(out.with_name(f".{out.name}.lock"), str(out), remedy=remedy, elsewhere="choose another OUT"):
        for earlier in _find_leftovers(out, EARLIER):
            if not os.path.lexists(out):
                os.rename(earlier, out)
        yield out


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces ``out`` when the block ends, and is deleted if the block raises.

    What killed processes left beside ``out`` is deleted at the end. ``out`` is that of ``lock_output``.
    """
    try:
        scratch = _choose_name(out)
        scratch.mkdir()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another OUT") from None
    try:
        yield scratch
        for path in (*scratch.iterdir(), scratch):
            sync_to_disk(path)
        _take_place(scratch, out)
        sync_to_disk(out.parent)
        for leftover in (*_find_leftovers(out), *_find_leftovers(out, EARLIER)):
            shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another OUT") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_place(scratch: Path, out: Path) -> None:
    """Renames ``scratch`` to ``out``. An old folder there keeps a hidden name beside it. If it fails, all is as it was."""
    if not os.path.lexists(out):
        os.rename(scratch, out)
    elif not exchange_names(scratch, out):
        earlier = _choose_name(out, EARLIER)
        os.rename(out, earlier)
        try:
            os.rename(scratch, out)
        except BaseException:
            os.rename(earlier, out)
            raise


def exchange_names(first: Path, second: Path) -> bool:
    """Exchanges the names of two files or folders in one step. Returns False, and changes nothing, where the system or the file
    system cannot. Raises OSError."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no glibc, or one older than 2.28
        return False
    names = os.fsencode(first), os.fsencode(second)
    if rename(AT_FDCWD, ctypes.c_char_p(names[0]), AT_FDCWD, ctypes.c_char_p(names[1]), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def _choose_name(out: Path, end: str = "") -> Path:
    """Chooses a hidden name beside ``out`` that nothing has."""
    return out.with_name(f".{out.name}.{uuid.uuid4().hex}{end}")


def _find_leftovers(out: Path, end: str = "") -> list[Path]:
    """Finds what ``_choose_name`` named, by whichever process."""
    return sorted(out.parent.glob(f".{glob.escape(out.name)}.{'?' * 32}{end}"))
