"""Keeps a run folder on object storage: it is written on the local disk, and copied to the store at every checkpoint.

Stores have no rename and no append, and both are what makes a run folder safe against kills. So a run whose
``run.storage_path`` is a URI works in a local folder like any other (``Config.run_folder``), which is copied: the files at each
checkpoint, and then the checkpoint, of which ``state.json``, which completes it, is the last. A run that starts, on whatever
machine, first takes the store's copy, and deletes local files that are not in it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from pipeline.files import storage
from pipeline.files.store_lock import require_lock

COMMIT_FILE = "state.json"
"""The file that makes a folder a checkpoint: written last, deleted first."""


def push_files(folder: Path, store: str) -> None:
    """Copies the files of a run folder, without checkpoints, to the store.

    Raises OSError that names the file, and RunFailed if this process no longer has the store's lock (see ``store_lock``).
    """
    require_lock(store)
    for name in _list_local_files(folder):
        try:
            storage.upload(folder / name, f"{store}/{name}")
        except FileNotFoundError:  # a tracker's, renamed or deleted since it was listed
            if (folder / name).exists():
                raise


def pull_files(store: str, folder: Path) -> None:
    """Replaces the files of a local run folder, without checkpoints, by those of the store.

    Raises OSError that names the file.
    """
    names = [name for name in _list_stored_files(store) if not _is_left_out(name)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(_list_local_files(folder)).difference(names):
        (folder / name).unlink(missing_ok=True)
    for remote in names:
        target = folder / remote
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        storage.download(f"{store}/{remote}", scratch)
        os.replace(scratch, target)


def push_checkpoint(checkpoint: Path, store: str) -> None:
    """Copies a checkpoint to the store; a kill leaves the whole of it there, or none. Raises the same as ``push_files``."""
    require_lock(store)
    target = f"{store}/{checkpoint.name}"
    delete_checkpoint(store, checkpoint.name)  # the damaged one that was skipped, or a half of one
    for path in sorted(checkpoint.iterdir(), key=lambda path: path.name == COMMIT_FILE):
        storage.upload(path, f"{target}/{path.name}")


def list_checkpoints(store: str) -> list[str]:
    """Lists the names of the store's complete checkpoints, newest first. Raises OSError."""
    files = [name for name in _list_stored_files(store) if name.startswith("checkpoint_") and name.endswith(COMMIT_FILE)]
    return sorted({name.split("/")[0] for name in files}, key=lambda name: (len(name), name), reverse=True)


def pull_checkpoint(store: str, name: str, folder: Path) -> Path:
    """Copies a checkpoint from the store, unless it is here already, and returns its path. Raises OSError."""
    source, target = f"{store}/{name}", folder / name
    commit = storage.read_bytes(f"{source}/{COMMIT_FILE}")
    if (target / COMMIT_FILE).is_file() and (target / COMMIT_FILE).read_bytes() == commit:
        return target
    scratch = folder / f".{name}.{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        for file in storage.list_remote_files(source):
            storage.download(f"{source}/{file}", scratch / file)
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.replace(scratch, target)
        except OSError:  # another process of this machine was faster
            if not (target / COMMIT_FILE).is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def delete_checkpoint(store: str, name: str) -> None:
    """Deletes a checkpoint from the store, ``COMMIT_FILE`` first. Raises OSError."""
    storage.delete(f"{store}/{name}/{COMMIT_FILE}")
    storage.delete(f"{store}/{name}")


def _is_left_out(name: str) -> bool:
    """Returns whether a file is left out: in a checkpoint, which is copied by itself, or a scratch file, with a dot before
    it."""
    return name.startswith(("checkpoint_", ".")) or "/." in name


def _list_local_files(folder: Path) -> list[str]:
    """Lists the files of a run folder that are copied. Files may vanish meanwhile, because the training goes on."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [name for name in names if not _is_left_out(name) and (folder / name).is_file()]


def _list_stored_files(store: str) -> list[str]:
    """Lists the files below the store's folder; none if there is no such folder yet."""
    try:
        return storage.list_remote_files(store)
    except FileNotFoundError:
        return []
