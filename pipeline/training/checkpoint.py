"""Checkpoints: folders that are whole or absent, verified by checksum on load, read without pickle.

    checkpoint_000100/
        model.safetensors       method.state_dict(): both students
        optimizer.safetensors   tensors of both optimizers' states, as student/parameter number/name
        state.json              step, next plan row, fingerprints, other optimizer state, sha256 of the files beside it

Learning rates and random numbers are functions of (seed, step), so there is nothing of them to save. A checkpoint is
written into a folder of another name, synchronized to disk and renamed, so a kill at any instruction leaves either a whole
checkpoint or a leftover that ``prune`` removes. Ray is not asked to keep them: it commits a reported checkpoint up to 2 s
late, which loses it in a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass
class TrainState:
    """All that a run is at one step."""

    method: nn.Module
    """What is stored: it holds both students."""
    students: nn.ModuleDict
    """The same students, by name."""
    optimizers: Mapping[str, torch.optim.Optimizer]
    """By student."""
    fingerprints: Mapping[str, str]
    """Of config, manifest and label subset: a checkpoint of other ones is refused."""
    step: int = 0
    """Optimizer steps done."""
    next_row: int = 0
    """First run row that was not trained yet."""


class DamagedCheckpoint(Exception):
    """A checkpoint folder that is not what was written; the text names the file."""


def save(state: TrainState, run_folder: Path) -> Path:
    """Write ``checkpoint_<step>`` atomically and return its path."""
    target = run_folder / f"checkpoint_{state.step:06d}"
    scratch = run_folder / f".{target.name}.{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    tensors, rest = _pack_optimizers(state.optimizers)
    save_file({name: value.contiguous() for name, value in state.method.state_dict().items()}, scratch / FILES[0])
    save_file(tensors, scratch / FILES[1])
    facts = {
        "step": state.step,
        "next_row": state.next_row,
        "fingerprints": dict(state.fingerprints),
        "optimizers": rest,
        "sha256": {name: _sha256(scratch / name) for name in FILES},
    }
    (scratch / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for path in (*scratch.iterdir(), scratch):
        _sync(path)
    if target.exists():  # a resumed run came by again: the same state, or the damaged one that was skipped
        shutil.rmtree(target)
    os.replace(scratch, target)
    _sync(run_folder)
    return target


def fork(checkpoint: Path, run_folder: Path, fingerprints: Mapping[str, str]) -> Path:
    """Start another run from a copy: the same tensors under the new run's fingerprints, with a record of where they are from.

    For population-based training, where knobs change in the middle. Whole or absent, as ``save``. Raises DamagedCheckpoint.
    """
    facts = read_facts(checkpoint)
    target = run_folder / checkpoint.name
    scratch = run_folder / f".{target.name}.{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    for name, digest in facts["sha256"].items():
        shutil.copyfile(checkpoint / name, scratch / name)
        if _sha256(scratch / name) != digest:
            raise DamagedCheckpoint(f"{checkpoint / name} is damaged")
    origin = {"run": checkpoint.parent.name, "step": facts["step"], "fingerprints": facts["fingerprints"]}
    facts = {**facts, "fingerprints": dict(fingerprints), "forked_from": origin}
    (scratch / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for path in (*scratch.iterdir(), scratch):
        _sync(path)
    os.replace(scratch, target)
    _sync(run_folder)
    return target


def load(state: TrainState, checkpoint: Path) -> None:
    """Restore ``state`` in place. Raises DamagedCheckpoint; ValueError for a checkpoint of another run."""
    facts = read_facts(checkpoint)
    for name, digest in facts["sha256"].items():
        if not (checkpoint / name).is_file() or _sha256(checkpoint / name) != digest:
            raise DamagedCheckpoint(f"{checkpoint / name} is missing or damaged")
    if facts["fingerprints"] != dict(state.fingerprints):
        raise ValueError(f"{checkpoint} belongs to another configuration: {facts['fingerprints']}, not {state.fingerprints}")
    state.method.load_state_dict(load_file(checkpoint / FILES[0]))
    _unpack_optimizers(state.optimizers, load_file(checkpoint / FILES[1]), facts["optimizers"])
    state.step, state.next_row = facts["step"], facts["next_row"]


def newest(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with newer ones (a line each, naming the file)."""
    problems: list[str] = []
    for checkpoint in sorted(run_folder.glob("checkpoint_*"), reverse=True):
        try:
            facts = read_facts(checkpoint)
            for name, digest in facts["sha256"].items():
                if not (checkpoint / name).is_file() or _sha256(checkpoint / name) != digest:
                    raise DamagedCheckpoint(f"{checkpoint / name} is missing or damaged")
            return checkpoint, problems
        except DamagedCheckpoint as error:
            problems.append(str(error))
    return None, problems


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """The content of state.json. Raises DamagedCheckpoint."""
    try:
        facts: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} is missing or damaged") from None
    if set(facts.get("sha256", ())) != set(FILES):
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} names no checksums")
    return facts


def prune(run_folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and leftovers of interrupted writes."""
    for leftover in run_folder.glob(".checkpoint_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in sorted(run_folder.glob("checkpoint_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _pack_optimizers(optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for student, optimizer in optimizers.items():
        for number, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                key = f"{student}/{number}/{name}"
                if isinstance(value, torch.Tensor):
                    tensors[key] = value.contiguous()
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
