"""A configuration checked and opened: what every way to train a run begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.clips.source import Source, open_source
from pipeline.clips.views import check_views
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files.folder_lock import get_command_line
from pipeline.manifest.label_subset import LabelSubset
from pipeline.methods import build_method, first_unlabeled_step
from pipeline.run_folder import run_store
from pipeline.run_folder.contents import Fingerprints, check_run, open_run
from pipeline.training.checkpoints import checkpoint
from pipeline.training.held_out import check_evaluated, check_held_out, missing_evaluated
from pipeline.training.loop import Run
from pipeline.training.monitoring.profiling import PROFILED, SKIPPED, profiled_steps
from pipeline.training.monitoring.tracking import check_tracking


@dataclass(frozen=True)
class Prepared:
    """A checked run: everything that can be wrong with the user's input was looked at."""

    run: Run
    source: Source
    facts: dict[str, Any]
    """What facts.json will say beside versions and fingerprints."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts."""

    @property
    def step(self) -> int:
        """The step of the newest whole checkpoint, 0 without one."""
        newest, _ = checkpoint.newest(self.run.folder, self.run.store)
        return 0 if newest is None else int(checkpoint.read_facts(newest)["step"])

    @property
    def finished(self) -> bool:
        """Whether the newest whole checkpoint is the last one."""
        return self.step >= self.run.config.train.steps

    def up_to(self, step: int) -> Prepared:
        """The same run, to be stopped at ``step``; it goes on from there to the same bits."""
        return replace(self, run=replace(self.run, until=step))

    def profiled(self) -> Prepared:
        """The same run, some steps of which are recorded. Raises UserError if it has too few left."""
        if not profiled_steps(self.run.config.method, self.step, self.run.end):
            raise UserError(
                f"--profile records {PROFILED} steps after {SKIPPED} that warm up; from step {self.step} to {self.run.end} are "
                "fewer: raise train.steps or --max-steps, or choose another run.name"
            )
        return replace(self, run=replace(self.run, profiled=True))

    def open(self) -> None:
        """Make the run folder: the first thing that is written, after everything was checked."""
        open_run(self.run.config, self.run.prints, self.facts)
        if self.run.store is not None:
            run_store.push_files(self.run.folder, self.run.store)


def prepare(config: Config, dry_run: bool = False) -> Prepared:
    """Read and check the inputs and the run folder. Raises UserError; writes nothing.

    Missing files of the videos that are evaluated at the end are only noted in a ``dry_run``, and not looked for where the run
    is trained to its end.
    """
    config = config.with_absolute_paths()
    run, source, labels = open_parts(config)
    classes, prints = source.manifest.classes, run.prints
    facts: dict[str, Any] = {
        "method": config.method.name,
        "classes": list(classes),
        "manifest": {"path": config.data.manifest, "fingerprint": prints.manifest, "videos": source.manifest.table.num_rows},
        "labels": {"spec": labels.spec, "seed": labels.seed, "fingerprint": labels.fingerprint, "count": len(labels.ids)},
        "command": get_command_line(),
    }
    check_held_out(source, config)
    check_evaluated(source, config)
    check_views(config.views)
    check_tracking(config.tracking)
    with torch.random.fork_rng():
        students: Any = build_method(config, len(classes), *source.plan.sizes).students
    facts["parameters"] = {name: sum(p.numel() for p in student.parameters()) for name, student in students.items()}
    prepared = Prepared(run, source, facts)
    try:
        if run.store is not None:
            run_store.pull_files(run.store, run.folder)
        check_run(config, prints)
        if prepared.finished:
            return prepared
    except OSError as error:
        raise UserError(f"run.storage_path={config.run.storage_path} does not answer: {error}") from None
    return replace(prepared, notes=tuple(missing_evaluated(source, config, required=not dry_run)))


def open_parts(config: Config) -> tuple[Run, Source, LabelSubset]:
    """What is trained, from where, with which labels. Raises UserError."""
    source, labels = open_source(config, first_unlabeled_step(config))
    prints = Fingerprints(config.fingerprint(), source.manifest.fingerprint, labels.fingerprint)
    usable = len(source.plan.labeled) + len(source.plan.unlabeled)
    folder, store = config.run_folder, config.run_store
    run = Run(config, source.plan, len(source.manifest.classes), usable, prints, folder, store, source=source)
    return run, source, labels


def open_again(config: Config, prints: Fingerprints) -> tuple[Run, Source]:
    """``open_parts`` in another process than the one that ``prepare`` ran in, which found these fingerprints.

    Not compared with the run folder: that of an object store is a copy here, which may be an older run's. Raises UserError.
    """
    run, source, _ = open_parts(config)
    if run.prints != prints:
        raise UserError(
            f"the manifest or labels of run {config.run.name} were written again since it started: put the earlier ones back, "
            "or choose another run.name"
        )
    return run, source


def ends_at(config: Config, step: int) -> Config:
    """For streams of a run that stops on its way: nothing after ``step`` is decoded."""
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": step})})
