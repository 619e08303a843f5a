"""Checks a configuration and opens its inputs: every way to train a run begins here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.clips.source import open_source
from pipeline.clips.views import check_views
from pipeline.config import STUDENTS, Config
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.files.lock_holder import get_command_line
from pipeline.manifest.label_file import read_file_labels
from pipeline.manifest.label_subset import LabelSubset
from pipeline.methods import build_method, find_first_unlabeled_step
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import Fingerprints, check_run_folder, create_run_folder
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import parse_step
from pipeline.training.held_out import check_evaluation_videos, check_held_out, note_missing_files
from pipeline.training.loop import TrainingRun
from pipeline.training.monitoring.profiling import PROFILED, SKIPPED, choose_profiled_steps
from pipeline.training.monitoring.tracking import check_tracking


@dataclass(frozen=True)
class PreparedRun:
    """A run whose configuration, data and folder were checked, with its inputs opened."""

    run: TrainingRun
    facts: dict[str, Any]
    """What facts.json will hold beside versions and fingerprints."""
    notes: tuple[str, ...] = ()
    """What the user should know before the run starts."""
    newest: Path | None = None
    """The newest whole checkpoint when the run was prepared; None before the first. Finding it reads a whole checkpoint, so it
    is found once; training asks again at its own start."""

    @property
    def step(self) -> int:
        """The step of ``newest``, 0 without one."""
        return 0 if self.newest is None else parse_step(self.newest.name)

    @property
    def is_finished(self) -> bool:
        """Whether ``newest`` is the last checkpoint of the run."""
        return self.step >= self.run.config.train.steps

    def stop_at(self, step: int) -> PreparedRun:
        """Returns the same run, to be stopped at ``step``. It goes on from there to the same bits as without a stop."""
        return replace(self, run=replace(self.run, stop_step=step))

    def with_profile(self) -> PreparedRun:
        """Returns the same run, some steps of which are to be profiled. Raises UserError if too few steps are left."""
        if not choose_profiled_steps(self.run.config.method, self.step, self.run.end):
            raise UserError(
                f"--profile records {PROFILED} steps after {SKIPPED} that warm up; from step {self.step} to {self.run.end} are "
                "fewer: raise train.steps or --max-steps, or choose another run.name"
            )
        return replace(self, run=replace(self.run, is_profiled=True))

    def create_folder(self) -> None:
        """Makes the run folder. It is the first thing that is written, after everything was checked."""
        create_run_folder(self.run.config, self.run.fingerprints, self.facts)
        if self.run.store is not None:
            run_store.push_files(self.run.folder, self.run.store)


def prepare_run(config: Config, dry_run: bool = False) -> PreparedRun:
    """Opens and checks the inputs, and checks the run folder. Raises UserError; writes nothing.

    Missing files of the videos that are evaluated at the end are only noted in a ``dry_run``, and not looked for where the run
    is trained to its end.
    """
    config = config.with_absolute_paths()
    run, labels = open_inputs(config)
    source = run.source
    classes, fingerprints = source.manifest.classes, run.fingerprints
    facts: dict[str, Any] = {
        "method": config.method.name,
        "classes": list(classes),
        "manifest": {
            "path": config.data.manifest,
            "fingerprint": fingerprints.manifest,
            "videos": source.manifest.table.num_rows,
        },
        "labels": {"spec": labels.spec, "seed": labels.seed, "fingerprint": labels.fingerprint, "count": len(labels.ids)},
        "command": get_command_line(),
    }
    check_held_out(source, config)
    check_evaluation_videos(source, config)
    check_views(config.views)
    check_tracking(config.tracking)
    notes: list[str] = []
    loads_weights = any(getattr(config, name).network.weights for name in STUDENTS)
    # parameters are counted here; drawing 60 million random ones would take seconds
    with torch.random.fork_rng(), contextlib.nullcontext() if loads_weights else torch.device("meta"):
        students: Any = build_method(config, len(classes), *source.plan.sizes, notes).students
    if run.file_labels is not None:
        counts = f"{run.file_labels.count:,} of {len(source.plan.unlabeled):,} unlabeled videos"
        notes.append(f"{config.method.file_label.file} has labels of {counts}")
    facts["parameters"] = {name: sum(p.numel() for p in student.parameters()) for name, student in students.items()}
    try:
        if run.store is not None:
            run_store.pull_files(run.store, run.folder)
        check_run_folder(config, fingerprints)
        newest, _ = checkpoint.find_newest(run.folder, run.store)
    except OSError as error:
        raise UserError(f"run.storage_path={config.run.storage_path} does not answer: {error}; {storage.REMEDY}") from None
    prepared = PreparedRun(run, facts, newest=newest)
    if prepared.is_finished:
        return prepared
    notes = notes if prepared.step == 0 else []  # later the weights are those of the checkpoint
    return replace(prepared, notes=(*notes, *note_missing_files(source, config, required=not dry_run)))


def open_inputs(config: Config) -> tuple[TrainingRun, LabelSubset]:
    """Opens the manifest and labels of a configuration.

    Returns what is trained, and the labels. Raises UserError.
    """
    source, labels = open_source(config, find_first_unlabeled_step(config))
    path, file_labels = config.method.file_label.file, None
    if path is not None:
        file_labels = read_file_labels(path, source.manifest, source.plan.unlabeled, config.method.file_label.hard)
    known = (source.manifest.fingerprint, labels.fingerprint, file_labels.fingerprint if file_labels else "")
    fingerprints = Fingerprints(config.compute_fingerprint(), *known)
    usable = len(source.plan.labeled) + len(source.plan.unlabeled)
    folder, store = config.run_folder, config.run_store
    run = TrainingRun(
        config, source, source.plan, len(source.manifest.classes), usable, fingerprints, folder, store, file_labels=file_labels,
    )  # fmt: skip
    return run, labels


def reopen_inputs(config: Config, fingerprints: Fingerprints) -> TrainingRun:
    """Opens the inputs by ``open_inputs`` in another process than the one of ``prepare_run``, which found ``fingerprints``.

    Each process opens them itself at each start. Sent by Ray, the table of up to ``MAPPED_ROWS`` videos would travel to each
    worker (tens of MB), and a larger one is mapped from a file that each node needs anyway; and a start after a failure must
    see whether the files are still those that the run began with. Raises UserError if the manifest or labels are others now.
    The run folder is not asked: where runs lie on object storage, this machine's copy may be an older run's.
    """
    run, _ = open_inputs(config)
    if run.fingerprints != fingerprints:
        raise UserError(
            f"the manifest or labels of run {config.run.name} were written again since it started: put the earlier ones back, "
            "or choose another run.name"
        )
    return run


def limit_steps(config: Config, step: int) -> Config:
    """Returns the configuration with ``train.steps`` lowered to ``step``, so that a stream decodes nothing after it."""
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": step})})
