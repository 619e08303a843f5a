"""Opens a model folder, or a run folder, as what evaluation and prediction need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.config import override
from pipeline.errors import UserError
from pipeline.methods import build_students
from pipeline.model_folder.read_folder import ModelFolder, is_model_folder, read_model_folder, read_shapes
from pipeline.run_folder.contents import Fingerprints, read_run
from pipeline.saved_models.saved_run import SavedRun, check_overrides, open_saved_run


def check_folder(folder: Path) -> None:
    """Raises UserError if a folder is neither a model folder nor a run folder; reads little of it."""
    if not is_model_folder(folder):
        try:
            read_run(folder)
        except UserError as error:
            raise UserError(f"{error}; nor is it a model folder, as python -m jobs.export writes one") from None


def open_model(folder: Path, overrides: Sequence[str] = (), allowed: Sequence[str] = ()) -> SavedRun:
    """Opens a model folder, or a run folder as ``open_saved_run`` does. Raises UserError.

    A model folder has no data of its own: ``data.manifest`` among the overrides names the data, if there is to be any.
    """
    folder = folder.expanduser().resolve()
    if not is_model_folder(folder):
        check_folder(folder)
        return open_saved_run(folder, overrides, allowed)
    check_overrides(overrides, allowed)
    model = read_model_folder(folder)
    knobs = {**model.knobs, "scale": {"workers": 0}}  # no Ray unless the command asks for it
    kept = model.training.get("checkpoint", "last")  # named with all results
    knobs["evaluation"] = {**knobs["evaluation"], "checkpoint": kept}
    knobs["train"] = {**knobs["train"], "keep_best": 1}  # the configuration asks that the best one was kept
    config = override(knobs, overrides, source=f"{folder / 'config.json'} and the command line").with_absolute_paths()
    if (asked := config.evaluation.checkpoint) != kept:
        remedy = f"leave that out, or export the run again with evaluation.checkpoint={asked}"
        raise UserError(f"evaluation.checkpoint={asked}: {folder} holds one checkpoint only, its run's {kept}; {remedy}")
    saved = SavedRun(
        folder=folder,
        config=config,
        classes=model.classes,
        fingerprints=Fingerprints(**model.training["fingerprints"]),
        videos=int(model.training.get("videos") or 0),
        weights=model.weights,
        step=int(model.training["step"]),
        trained_steps=int(model.training["step"]),
        moved=True,
        calibration=model.calibration,
    )
    check_weights(saved, model)
    return saved


def check_weights(saved: SavedRun, model: ModelFolder) -> None:
    """Raises UserError if the file of weights is not of the networks and the number of classes that the folder's files name."""
    with torch.device("meta"):  # no memory is taken, whatever sizes config.json claims
        students = build_students(saved.config, len(model.classes))
    wanted = {f"students.{name}": list(value.shape) for name, value in students.state_dict().items()}
    found = read_shapes(model.weights)
    where = f"{model.weights} does not fit config.json and labels.json"
    for name in ("primary", "auxiliary"):
        shape = found.get(f"students.{name}.head.weight")
        if shape and shape[0] != len(model.classes):
            raise UserError(f"{where}: the {name} network has {shape[0]} classes, labels.json names {len(model.classes)}")
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} belongs to no network" for name in found if name not in wanted]
    unlike = [name for name in wanted if found.get(name, wanted[name]) != wanted[name]]
    problems += [f"{name} is {found[name]}, not {wanted[name]}" for name in unlike]
    if problems:
        raise UserError(f"{where} ({len(problems)} tensors); export or download it again:", problems[:5])
