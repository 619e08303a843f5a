"""A run folder on object storage: assembled on the local disk, copied to the store at every checkpoint.

Stores have no rename and no append, and both are what makes a run folder safe against kills. So a run whose
``run.storage_path`` is a URI works in a local folder as any other (``Config.run_folder``), and what it would lose with the
disk is copied: the files at each checkpoint, and the checkpoint last, its ``state.json``, which makes it one, as the very last.
A run that starts, on whatever machine, first takes the store's copy; nothing local outlives it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from pipeline.files import storage
from pipeline.files.store_lock import require_lock

COMMIT = "state.json"
"""The file that makes a folder a checkpoint: written last, deleted first."""


def push_files(folder: Path, store: str) -> None:
    """Copy the files of a run folder, checkpoints excepted, to the store. Raises OSError that names the file; RunFailed if the
    store's lock is no longer this process's, see ``store_lock``."""
    require_lock(store)
    for name in _copied(folder):
        try:
            storage.upload(folder / name, f"{store}/{name}")
        except FileNotFoundError:  # a tracker's, renamed or deleted since it was listed
            if (folder / name).exists():
                raise


def pull_files(store: str, folder: Path) -> None:
    """Make the files of a local run folder, checkpoints excepted, those of the store. Raises OSError that names the file."""
    names = [name for name in _names(store) if not _left_out(name)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(_copied(folder)).difference(names):
        (folder / name).unlink(missing_ok=True)
    for remote in names:
        target = folder / remote
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        storage.download(f"{store}/{remote}", scratch)
        os.replace(scratch, target)


def push_checkpoint(checkpoint: Path, store: str) -> None:
    """Copy a checkpoint to the store; a kill leaves the whole of it there, or none. Raises as ``push_files``."""
    require_lock(store)
    target = f"{store}/{checkpoint.name}"
    delete_checkpoint(store, checkpoint.name)  # the damaged one that was skipped, or a half of one
    for path in sorted(checkpoint.iterdir(), key=lambda path: path.name == COMMIT):
        storage.upload(path, f"{target}/{path.name}")


def checkpoints(store: str) -> list[str]:
    """Names of the store's committed checkpoints, newest first. Raises OSError."""
    found = {name.split("/")[0] for name in _names(store) if name.startswith("checkpoint_") and name.endswith(COMMIT)}
    return sorted(found, key=lambda name: (len(name), name), reverse=True)


def pull_checkpoint(store: str, name: str, folder: Path) -> Path:
    """Copy a checkpoint from the store, unless it is there already, and return its path. Raises OSError."""
    source, target = f"{store}/{name}", folder / name
    commit = storage.read_bytes(f"{source}/{COMMIT}")
    if (target / COMMIT).is_file() and (target / COMMIT).read_bytes() == commit:
        return target
    scratch = folder / f".{name}.{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        for file in storage.list_files_below(source):
            storage.download(f"{source}/{file}", scratch / file)
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.replace(scratch, target)
        except OSError:  # another process of this machine was faster
            if not (target / COMMIT).is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def delete_checkpoint(store: str, name: str) -> None:
    """Delete a checkpoint from the store, its commit first. Raises OSError."""
    storage.delete(f"{store}/{name}/{COMMIT}")
    storage.delete(f"{store}/{name}")


def _left_out(name: str) -> bool:
    """Checkpoints, which are copied by themselves, and whatever has a dot before it: scratch files that are about to go."""
    return name.startswith(("checkpoint_", ".")) or "/." in name


def _copied(folder: Path) -> list[str]:
    """Names of the files of a run folder that are copied. The training goes on beside this: what vanishes is not there."""
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if not _left_out(name) and (folder / name).is_file()]


def _names(store: str) -> list[str]:
    """Files below the store's folder, none if there is no such folder yet."""
    try:
        return storage.list_files_below(store)
    except FileNotFoundError:
        return []
