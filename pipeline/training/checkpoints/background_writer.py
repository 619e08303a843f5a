"""Writes checkpoints beside the training: the state is copied to the host and written by a thread, one at a time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.config import TrainSection
from pipeline.errors import RunFailed
from pipeline.files import storage
from pipeline.files.disk import sync_to_disk
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import list_score_files
from pipeline.training.checkpoints.checkpoint import (
    NOT_FINITE,
    Snapshot,
    TrainState,
    choose_kept_steps,
    delete_old_checkpoints,
    take_snapshot,
    write,
)
from pipeline.training.checkpoints.checkpoint_facts import parse_step


class NotSaved(RuntimeError):
    """A checkpoint could not be written; the message names its path and the cause. The one before is untouched."""


class CheckpointWriter:
    """Saves the states of one run. ``save`` returns as soon as the state is copied to the host.

    The step after a checkpoint does not wait for the disk or the store, unless the checkpoint before is still being written:
    there is never more than one copy of the state in memory. What went wrong is raised by the next call of any method.
    """

    def __init__(self, folder: Path, store: str | None, train: TrainSection, active: bool = True) -> None:
        """``active`` is true on the first worker; the others' writers do nothing."""
        self.folder, self.store, self.train, self.active = folder, store, train, active
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Starts to write the state.

        Raises NotSaved if the one before could not be written, RunFailed if a weight of it was not finite.
        """
        if not self.active:
            return
        self.wait()
        self._pending = self._thread.submit(self._write, take_snapshot(state))

    def check(self) -> None:
        """Raises NotSaved or RunFailed if a write has failed; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until what was saved is on its storage. Raises NotSaved or RunFailed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Waits until all is written, also if the training ends by an exception, which then hides one from here."""
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def _write(self, shot: Snapshot) -> None:
        for name, value in shot.model.items():  # on the host and in this thread, where looking at all of them delays no step
            if not value.isfinite().all():
                raise RunFailed(f"{name} is no longer finite at step {shot.facts['step']}; {NOT_FINITE}")
        try:
            self._write_all(shot)
        except Exception as error:
            where = f"{self.store or self.folder}/{shot.name}"
            raise NotSaved(f"{where} could not be written: {error}") from error

    def _write_all(self, shot: Snapshot) -> None:
        step, scores = shot.facts["step"], {int(step): score for step, score in shot.facts["scores"].items()}
        policy = (self.train.keep_checkpoints, scores, self.train.keep_best)
        _sync_run_files(self.folder)
        checkpoint = write(shot, self.folder)

        def push(store: str) -> None:
            run_store.push_files(self.folder, store)  # metrics up to this step before the checkpoint that relies on them
            run_store.push_checkpoint(checkpoint, store)
            names = run_store.list_checkpoints(store)
            wanted = choose_kept_steps(map(parse_step, names), step, *policy)
            for name in names:
                if parse_step(name) not in wanted:
                    run_store.delete_checkpoint(store, name)

        if (store := self.store) is not None:
            storage.wait_for_store(lambda: push(store))
        delete_old_checkpoints(self.folder, step, *policy)


def _sync_run_files(folder: Path) -> None:
    """Syncs to the disk what the run wrote up to a checkpoint, before the checkpoint, because these steps do not come again."""
    scores = list(list_score_files(folder))[-1:]
    for path in (folder / "metrics.jsonl", folder / "quarantine.parquet", *scores, *(part.parent for part in scores)):
        if path.exists():
            sync_to_disk(path)
