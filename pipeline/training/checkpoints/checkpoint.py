"""Checkpoints: folders that are whole or absent, verified by checksum on load, read without pickle.

    checkpoint_000100/
        model.safetensors       method.state_dict(): both students, heads, teachers, label statistics
        optimizer.safetensors   tensors of both optimizers' states, as student/parameter number/name
        state.json              step, next plan row, fingerprints, scaler, held-out scores, the unwritten part of a line of
                                metrics, the rest of the optimizers' states, sha256 of the files beside it and of all this

Learning rates and random numbers are functions of (seed, step), so there is nothing of them to save. A checkpoint is
written into a folder of another name, synchronized to disk and renamed, so a kill at any instruction leaves either a whole
checkpoint or a leftover that ``delete_old_checkpoints`` removes. Ray is not asked to keep them: it commits a reported
checkpoint up to 2 s late, which loses it in a crash. ``background_writer.py`` does this beside the training.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import UserError
from pipeline.files.disk import sync_to_disk
from pipeline.files.tensor_files import save_tensors
from pipeline.methods import Method
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.run_folder import run_store
from pipeline.training.checkpoints.checkpoint_facts import (
    FILES,
    DamagedCheckpoint,
    format_sealed,
    parse_step,
    read_facts,
    verify_checkpoint,
)

NOT_FINITE = (
    "that would happen again, so the run stops at the checkpoint before: lower primary.optimizer.lr and auxiliary.optimizer.lr,"
    " set clip_gradient_norm, or train in fp32, under another run.name"
)
"""What the user is told, beside the name of the number, if a loss, gradient or weight is no longer finite."""


@dataclass
class TrainState:
    """Everything that a run is made of at one step."""

    method: Method
    """What is stored: both students, and the method's own state."""
    students: nn.ModuleDict
    """The same students, by name."""
    optimizers: Mapping[str, torch.optim.Optimizer]
    """The optimizers, by student."""
    fingerprints: Mapping[str, str]
    """Those of config, manifest and label subset; a checkpoint of others is refused."""
    step: int = 0
    """How many optimizer steps were taken."""
    next_row: int = 0
    """The first run row that was not trained yet."""
    scaler: Any = None
    """The scaler of fp16's gradients, which has ``state_dict`` and ``load_state_dict``; None in other precisions."""
    scores: dict[int, float] = field(default_factory=dict)
    """The held-out accuracy at each checkpoint's step so far."""
    unwritten: dict[str, Any] = field(default_factory=dict)
    """The sums of the steps since the last line of metrics; empty unless the run stops between two lines."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the host, which the training does not change."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    facts: dict[str, Any]
    """The content of state.json without the checksums."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"checkpoint_{self.facts['step']:06d}"


def take_snapshot(state: TrainState) -> Snapshot:
    """Copies a state to the host; after this the training may go on."""
    tensors, rest = _pack_optimizers(state.optimizers)
    facts = {
        "step": state.step,
        "next_row": state.next_row,
        "fingerprints": dict(state.fingerprints),
        "scores": {str(step): score for step, score in state.scores.items()},
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "unwritten": dict(state.unwritten),
        "optimizers": rest,
    }
    return Snapshot(_to_host(state.method.state_dict()), _to_host(tensors), facts)


def save(state: TrainState, run_folder: Path) -> Path:
    """Writes ``checkpoint_<step>`` atomically and returns its path."""
    return write(take_snapshot(state), run_folder)


def write(shot: Snapshot, run_folder: Path) -> Path:
    """Writes a snapshot atomically and returns its path."""
    target = run_folder / shot.name
    scratch = run_folder / f".{target.name}.{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    for name, tensors in zip(FILES, (shot.model, shot.optimizer), strict=True):
        save_tensors(tensors, scratch / name)
    facts = {**shot.facts, "sha256": {name: compute_sha256(scratch / name) for name in FILES}}
    (scratch / run_store.COMMIT_FILE).write_text(format_sealed(facts), encoding="utf-8")
    for path in (*scratch.iterdir(), scratch):
        sync_to_disk(path)
    if target.exists():  # a resumed run came by again: the same state, or the damaged one that was skipped
        shutil.rmtree(target)
    os.replace(scratch, target)
    sync_to_disk(run_folder)
    return target


def fork(checkpoint: Path, run_folder: Path, fingerprints: Mapping[str, str]) -> Path:
    """Copies a checkpoint into another run's folder, with that run's fingerprints and a record of where the tensors are from.

    For population-based training, where knobs change in the middle. It is whole or absent, as by ``save``. Raises
    DamagedCheckpoint.
    """
    facts = read_facts(checkpoint)
    target = run_folder / checkpoint.name
    scratch = run_folder / f".{target.name}.{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    for name, digest in facts["sha256"].items():
        shutil.copyfile(checkpoint / name, scratch / name)
        if compute_sha256(scratch / name) != digest:
            raise DamagedCheckpoint(f"{checkpoint / name} is damaged")
    origin = {"run": checkpoint.parent.name, "step": facts["step"], "fingerprints": facts["fingerprints"]}
    facts = {**facts, "fingerprints": dict(fingerprints), "forked_from": origin}
    (scratch / run_store.COMMIT_FILE).write_text(format_sealed(facts), encoding="utf-8")
    for path in (*scratch.iterdir(), scratch):
        sync_to_disk(path)
    os.replace(scratch, target)
    sync_to_disk(run_folder)
    return target


def load(state: TrainState, checkpoint: Path) -> None:
    """Restores ``state`` in place. Raises DamagedCheckpoint, and ValueError for a checkpoint of another run."""
    facts = verify_checkpoint(checkpoint)
    if facts["fingerprints"] != dict(state.fingerprints):
        raise ValueError(f"{checkpoint} belongs to another configuration: {facts['fingerprints']}, not {state.fingerprints}")
    state.method.load_state_dict(load_file(checkpoint / FILES[0]))
    _unpack_optimizers(state.optimizers, load_file(checkpoint / FILES[1]), facts["optimizers"])
    if state.scaler is not None and facts["scaler"] is not None:
        state.scaler.load_state_dict(facts["scaler"])
    state.step, state.next_row = facts["step"], facts["next_row"]
    state.scores = {int(step): score for step, score in facts["scores"].items()}
    state.unwritten = facts["unwritten"]


def find_newest(run_folder: Path, store: str | None = None) -> tuple[Path | None, list[str]]:
    """Finds the newest whole checkpoint, and says what is wrong with newer ones (a line each, naming the file).

    If the run lies on object storage, ``store`` is its URI, and the checkpoint is copied from there into ``run_folder``. Raises
    OSError if the store does not answer.
    """
    problems: list[str] = []
    for checkpoint in _list_checkpoints(run_folder, store):
        try:
            verify_checkpoint(checkpoint)
            return checkpoint, problems
        except DamagedCheckpoint as error:
            problems.append(str(error))
    return None, problems


def find_best(run_folder: Path, store: str | None = None) -> tuple[Path | None, list[str]]:
    """Finds the kept checkpoint of the best held-out score (the earlier among equals), and says what is wrong if there is none.

    The scores are those that the newest whole checkpoint knows. ``store`` is as in ``find_newest``.
    """
    newest, problems = find_newest(run_folder, store)
    if newest is None:
        return None, problems
    scores = {int(step): score for step, score in read_facts(newest)["scores"].items()}
    names = run_store.list_checkpoints(store) if store else [path.name for path in run_folder.glob("checkpoint_*")]
    kept = {step: name for name in names if (step := parse_step(name)) in scores}
    if not kept:
        return None, [*problems, "no kept checkpoint has a held-out score"]
    name = kept[min(kept, key=lambda step: (-scores[step], step))]
    best = run_store.pull_checkpoint(store, name, run_folder) if store else run_folder / name
    try:
        verify_checkpoint(best)
    except DamagedCheckpoint as error:
        return None, [str(error)]
    return best, problems


def find_best_weights(folder: Path, store: str | None = None) -> tuple[Path, int]:
    """Finds the weights and the step of the checkpoint that ``evaluation.checkpoint=best`` means. Raises UserError."""
    best, problems = find_best(folder, store)
    if best is None:
        raise UserError(f"evaluation.checkpoint=best: {folder} has no such checkpoint; evaluation.checkpoint=last:", problems)
    return best / FILES[0], int(read_facts(best)["step"])


def delete_old_checkpoints(run_folder: Path, step: int, keep: int, best: Mapping[int, float] = {}, keep_best: int = 0) -> None:
    """Deletes the checkpoints that ``choose_kept_steps`` does not keep, and leftovers of interrupted writes."""
    for leftover in run_folder.glob(".checkpoint_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    paths = {parse_step(path.name): path for path in run_folder.glob("checkpoint_*")}
    kept_steps = choose_kept_steps(paths, step, keep, best, keep_best)
    for number, path in paths.items():
        if number not in kept_steps:
            shutil.rmtree(path, ignore_errors=True)


def choose_kept_steps(
    steps: Iterable[int], step: int, keep: int, scores: Mapping[int, float] = {}, keep_best: int = 0
) -> set[int]:
    """Chooses which of these steps' checkpoints stay at ``step``: the newest ``keep``, and the ``keep_best`` of the best score
    (the earlier among equals). Those later than ``step`` do not stay: they were found damaged, and are written again."""
    past = sorted(number for number in steps if number <= step)
    scored = sorted((number for number in past if number in scores), key=lambda number: (-scores[number], number))
    return {*past[-keep:], *scored[:keep_best]}


def _list_checkpoints(run_folder: Path, store: str | None) -> Iterator[Path]:
    """Yields checkpoints, the newest first."""
    if store is None:
        yield from sorted(run_folder.glob("checkpoint_*"), key=lambda path: parse_step(path.name), reverse=True)
        return
    for name in run_store.list_checkpoints(store):
        yield run_store.pull_checkpoint(store, name, run_folder)


def _to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Makes contiguous copies, one for each name: safetensors refuses tensors that share memory."""
    copies = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in tensors.items()}
    for name, value in tensors.items():
        copies[name].copy_(value.detach())
    return copies


def _pack_optimizers(optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for student, optimizer in optimizers.items():
        for number, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                key = f"{student}/{number}/{name}"
                if isinstance(value, torch.Tensor):
                    tensors[key] = value
                else:
                    rest[key] = value
    return tensors, rest


def _unpack_optimizers(
    optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> None:
    states: dict[str, dict[int, dict[str, Any]]] = {student: {} for student in optimizers}
    for key, value in {**tensors, **rest}.items():
        student, number, name = key.split("/")
        states[student].setdefault(int(number), {})[name] = value
    for student, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[student], "param_groups": optimizer.state_dict()["param_groups"]})
        _restore_layouts(optimizer)


def _restore_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Puts momenta into their parameters' memory format (channels_last_3d), as they were. Files hold contiguous tensors, and
    an optimizer whose tensors are laid out in two ways updates them one by one instead of together."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.zeros_like(parameter, dtype=value.dtype).copy_(value)
