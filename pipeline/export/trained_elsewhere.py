"""Opens networks that were trained elsewhere, from files of weights, so that they are written as a model folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.config import STUDENTS, Config, PlainConv3dSection
from pipeline.errors import UserError
from pipeline.files.tensor_files import save_tensors
from pipeline.methods import build_students
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.run_folder.contents import Fingerprints
from pipeline.saved_models.saved_run import SavedRun
from pipeline.students import Student, load_weights

UNKNOWN = "unknown"
"""Stands for the fingerprints of data that nobody here has seen."""


@dataclass(frozen=True)
class TrainedElsewhere:
    """Networks from files, as a run that was opened, and what is known of their training."""

    run: SavedRun
    training: dict[str, Any]
    """The content of training.json."""


def parse_checkpoints(words: Sequence[str]) -> dict[str, Path]:
    """Parses ``FILE``, which stands for both networks, or ``primary=FILE`` and ``auxiliary=FILE``. Returns files by network.
    Raises UserError."""
    files: dict[str, Path] = {}
    for word in words:
        name, _, path = word.partition("=")
        name, path = (name, path) if name in STUDENTS and path else ("", word)
        if name in files:
            raise UserError(f"--from-checkpoint names {'the ' + name if name else 'a file for both networks'} twice")
        files[name] = Path(path).expanduser()
    if "" in files and len(files) > 1:
        raise UserError("--from-checkpoint: give one FILE, which becomes both networks, or primary=FILE and auxiliary=FILE")
    if folder := next((path for path in files.values() if path.is_dir()), None):
        raise UserError(f"--from-checkpoint {folder} is a folder; give a file, such as model.safetensors of a model folder")
    return {"primary": files[""]} if "" in files else files


def read_class_file(path: Path) -> tuple[str, ...]:
    """Reads class names in the order of a network's outputs: a line each, or JSON, a list or names with their numbers. Raises
    UserError."""
    where = f"--classes {path}"
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")  # Windows' editors write a mark first
        content = json.loads(text) if path.suffix == ".json" else text.strip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(content, dict):
        if sorted(content.values(), key=str) != sorted(range(len(content)), key=str):
            raise UserError(f"{where}: the numbers of the classes must be 0 to {len(content) - 1}, each one once")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{where} must be a list of class names, or class names with their numbers")
    names = [name.strip().strip('"') for name in content]  # PyTorchVideo's list has quotes within its names
    if empty := [number for number, name in enumerate(names, start=1) if not name]:
        raise UserError(f"{where}: class {empty[0]} has no name")
    if len(names) < 2 or len({*names}) < len(names):
        twice = next((name for name in names if names.count(name) > 1), "")
        raise UserError(f"{where}: " + (f"{twice!r} is named twice" if twice else "at least 2 classes are needed"))
    return tuple(names)


@contextlib.contextmanager
def open_trained_elsewhere(
    files: Mapping[str, Path], config: Config, classes: Sequence[str], trained_by: str
) -> Iterator[TrainedElsewhere]:
    """Loads the files into the networks of the configuration. A single file becomes both, by the sections of its network.

    Raises UserError if a file cannot be read, fits no network, or has a classifier of another number of classes.
    """
    config = _take_over(files, config)
    students = build_students(config, len(classes))
    for name in STUDENTS:
        path = files[name] if name in files else next(iter(files.values()))
        network = getattr(config, name).network
        pixels = None if isinstance(network, PlainConv3dSection) else network.weights_pixels
        loaded = load_weights(cast(Student, students[name]), str(path), "--from-checkpoint", pixels)
        if not loaded.head:
            theirs = "no classifier" if loaded.their_classes is None else f"a classifier of {loaded.their_classes} classes"
            remedy = f"to train one, start from the file: {name}.network.weights={path}"
            raise UserError(f"--from-checkpoint {path} has {theirs}, and --classes names {len(classes)}; {remedy}")
    with tempfile.TemporaryDirectory(prefix="actnetformer-") as scratch:
        weights = Path(scratch) / "model.safetensors"
        save_tensors({f"students.{name}": value.contiguous() for name, value in students.state_dict().items()}, weights)
        training = _describe(files, config, classes, trained_by, students)
        fingerprints = Fingerprints(**training["fingerprints"])
        yield TrainedElsewhere(
            SavedRun(Path(scratch), config, tuple(classes), fingerprints, 0, weights, step=0, trained_steps=0), training
        )


def _take_over(files: Mapping[str, Path], config: Config) -> Config:
    """Returns the configuration with the weights alone that are evaluated, and one network's sections for both if there is
    only one file."""
    sections = {name: getattr(config, name) for name in STUDENTS}
    if len(files) == 1:
        only = sections[next(iter(files))]
        same = {"network": only.network, "clip": only.clip}
        sections = {name: part.model_copy(update=same) for name, part in sections.items()}
    train = config.train.model_copy(update={"ema_decay": None})
    evaluation = config.evaluation.model_copy(update={"checkpoint": "last"})
    return config.model_copy(update={**sections, "train": train, "evaluation": evaluation})


def _describe(
    files: Mapping[str, Path], config: Config, classes: Sequence[str], trained_by: str, students: torch.nn.ModuleDict
) -> dict[str, Any]:
    digests = {name: compute_sha256(path) for name, path in files.items()}
    networks = config.model_dump(mode="json", include={"primary": {"network"}, "auxiliary": {"network"}})
    content = [digests, list(classes), networks]
    of_model = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    sources = {name: {"file": path.name, "sha256": digests[name]} for name, path in files.items()}
    return {
        "trained_elsewhere": {"by": trained_by, "files": sources},
        "run": " and ".join(path.name for path in files.values()),
        "step": 0,
        "checkpoint": "last",
        "fingerprints": {"config": of_model, "manifest": UNKNOWN, "labels": UNKNOWN},
        "videos": 0,
        "parameters": {name: sum(value.numel() for value in student.parameters()) for name, student in students.items()},
    }
