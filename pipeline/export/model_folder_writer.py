"""Writes a model folder from a run: all of it, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.calibration import is_of_evaluation
from pipeline.evaluation.protocol import collect_protocol
from pipeline.export.folder_replacement import lock_output, replace_folder
from pipeline.export.model_card import write_card
from pipeline.export.programs import ProgramRequest, WrittenPrograms, write_programs
from pipeline.files.tensor_files import save_tensors
from pipeline.model_folder.read_folder import (
    CALIBRATION,
    CARD,
    CHECKSUMS,
    CONFIG,
    FORMAT_VERSION,
    KNOBS,
    LABELS,
    NOT_OF_THE_MODEL,
    PREPROCESSING,
    PROGRAMS,
    TRAINING,
    WEIGHTS,
    ModelFolder,
    compute_sha256,
    describe_preprocessing,
    is_model_folder,
    read_checksums,
    read_model_folder,
)
from pipeline.run_folder.contents import read_run
from pipeline.saved_models.saved_run import SavedRun


@dataclass(frozen=True)
class ExportedModel:
    """A model folder that was written."""

    folder: Path
    files: Mapping[str, int]
    """The size in bytes of each file."""
    replaced_step: int | None
    """The step of the earlier export that was replaced, if there was one."""
    programs: WrittenPrograms | None
    """The exported programs, if any were requested."""
    notes: tuple[str, ...]
    """What of the run, or of the earlier export, is not in the folder, and how it gets there."""


def export_model(
    run: SavedRun, out: Path, request: ProgramRequest | None = None, training: Mapping[str, Any] | None = None
) -> ExportedModel:
    """Writes the checkpoint of an opened run as the model folder ``out``, with the requested programs.

    ``training`` is the content of training.json for networks that no run here trained.

    Raises UserError if ``out`` holds anything but an older export of the same run, and if a program computes something else,
    and if another process writes ``out``.
    """
    with lock_output(out) as resolved:
        return _export_model(run, resolved, request, describe_training(run) if training is None else training)


def _export_model(run: SavedRun, out: Path, request: ProgramRequest | None, training: Mapping[str, Any]) -> ExportedModel:
    training = {**training, "exported_with": {"actnetformer": _find_version(), "torch": torch.__version__}}
    earlier = check_target(out, training)
    texts = {
        CONFIG: _dump({"model_type": "actnetformer", "format_version": FORMAT_VERSION, **select_knobs(run.config)}),
        LABELS: _dump(list(run.classes)),
        PREPROCESSING: _dump(describe_preprocessing(run.config)),
        TRAINING: _dump(training),
    }
    calibration, notes = choose_calibration(run, earlier)
    if calibration:
        texts[CALIBRATION] = _dump(calibration)
    evaluation = _read_results(run, "evaluation.json")
    programs, measured, files = None, {}, [WEIGHTS, *texts, CARD]
    with replace_folder(out) as scratch:
        save_tensors(select_weights(run), scratch / WEIGHTS, metadata={"format": "pt"})
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")
        if request is not None:
            programs = write_programs(request, run.config, len(run.classes), scratch / WEIGHTS, scratch)
            measured = programs.to_json()
            (scratch / PROGRAMS).write_text(_dump(measured), encoding="utf-8")
            files += [PROGRAMS, *programs.files]
        card = write_card(out.name, run, training, evaluation, calibration, measured)
        (scratch / CARD).write_text(card, encoding="utf-8")
        write_checksums(scratch, files)
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return ExportedModel(
        folder=out,
        files=sizes,
        replaced_step=int(earlier.model.training["step"]) if earlier else None,
        programs=programs,
        notes=(*notes, *(_list_lost_programs(earlier, files) if earlier else ())),
    )


def choose_calibration(run: SavedRun, earlier: EarlierExport | None) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the temperatures of these weights and this protocol, by the run's calibration.json or else that of the earlier
    export; nothing if neither is of them. Also returns notes on those that are left out."""
    exported = {"step": run.step, "protocol": collect_protocol(run.config), "weights_sha256": compute_sha256(run.weights)}
    own = _read_results(run, CALIBRATION)
    if own and is_of_evaluation(own, exported):
        return own, []
    if earlier and earlier.model.calibration and is_of_evaluation(earlier.model.calibration, exported):
        return earlier.model.calibration, []
    owners = ["the run"] if (run.folder / CALIBRATION).exists() else []
    owners += ["the replaced export"] if earlier and earlier.model.calibration else []
    why = f"it is not of step {run.step} and this protocol; jobs.evaluate {run.folder.name} --calibrate, then export again"
    return {}, [f"{CALIBRATION} of {owner} is left out: {why}" for owner in owners]


def _list_lost_programs(earlier: EarlierExport, files: Sequence[str]) -> list[str]:
    """Notes the programs of the earlier export that were not requested again."""
    lost = [name for name in earlier.files if name.endswith((".onnx", ".pt2")) and name not in files]
    options = "--torch-export, --onnx or --onnx-int8 writes them again"
    return [f"{', '.join(lost)} of the replaced export are gone, which were of its weights: {options}"] if lost else []


def select_knobs(config: Config) -> dict[str, Any]:
    """Selects the knobs that config.json holds. Where training started (``network.weights``) is not among them."""
    knobs = config.model_dump(mode="json", include=KNOBS)
    for name in NOT_OF_THE_MODEL:
        knobs["evaluation"].pop(name, None)
    for student in ("primary", "auxiliary"):
        knobs[student]["network"]["weights"] = None
        knobs[student]["network"].pop("weights_pixels", None)
    return knobs


def select_weights(run: SavedRun) -> dict[str, torch.Tensor]:
    """Selects the tensors that are evaluated: the running means of the weights if the run has them, without projection heads,
    teachers and label statistics."""
    wanted = "students" if run.config.train.ema_decay is None else "averages"
    stored = {name.partition("."): value for name, value in load_file(run.weights).items()}
    return {
        f"students.{name}": value.contiguous()
        for (part, _, name), value in stored.items()
        if part == wanted and ".projection." not in name
    }


def describe_training(run: SavedRun) -> dict[str, Any]:
    """Collects the content of training.json. It names no folder of this machine."""
    _, facts = read_run(run.folder)
    labels = facts.get("labels", {})
    config = run.config
    return {
        "run": run.folder.name,
        "method": config.method.name,
        "step": run.step,
        "steps": config.train.steps,
        "checkpoint": config.evaluation.checkpoint,
        "seed": config.run.seed,
        "fingerprints": run.fingerprints.as_dict(),
        "videos": run.videos,
        "labels": {name: labels.get(name) for name in ("spec", "seed", "count")},
        "started_from": {name: _hide_folder(getattr(config, name).network.weights) for name in ("primary", "auxiliary")},
        "parameters": facts.get("parameters"),
        "trained_with": facts.get("versions"),
        "created": facts.get("created"),
    }


def _hide_folder(where: str | None) -> str | None:
    """Returns published weights as they are, and of a file its name alone."""
    return where if where is None or where.startswith(("timm:", "torchvision:")) else Path(where).name


def _find_version() -> str | None:
    try:
        return version("actnetformer")
    except PackageNotFoundError:  # run from a folder that a job uploaded
        return None


def _read_results(run: SavedRun, name: str) -> dict[str, Any]:
    """Reads a JSON file of the run if it is of the weights that are exported, else returns nothing."""
    with suppress(OSError, ValueError):
        content = json.loads((run.folder / name).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("step") == run.step:
            return content
    return {}


def _dump(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------------ the folder


@dataclass(frozen=True)
class EarlierExport:
    """An older export of the same run, which is to be replaced."""

    model: ModelFolder
    files: tuple[str, ...]
    """The names of its files."""


def check_target(out: Path, training: Mapping[str, Any]) -> EarlierExport | None:
    """Returns the older export that lies at ``out``, or None. Raises UserError if something else lies there, or if ``out`` is
    inside of a run folder, from which training deletes checkpoints and whatever has such a name."""
    if run := next((folder for folder in out.parents if (folder / "facts.json").is_file()), None):
        raise UserError(f"{out} is inside of the run folder {run}, which is the training's own: choose an OUT beside it")
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose another OUT")
    if not any(out.iterdir()):
        return None
    other = "choose another OUT, or move it away"
    if not is_model_folder(out):
        raise UserError(f"{out} exists and is not a model folder: {other}")
    model = read_model_folder(out)
    earlier = model.training
    differing = [
        f"{name}: {earlier['fingerprints'].get(name)} there, {value} of this run"
        for name, value in training["fingerprints"].items()
        if earlier["fingerprints"].get(name) != value
    ]
    if differing:
        raise UserError(f"{out} is the model of another run ({earlier.get('run')}): {other}:", differing)
    step = int(earlier["step"])
    if step > training["step"]:
        raise UserError(f"{out} is of a later step ({step}) than this checkpoint ({training['step']}): {other}")
    checksums = read_checksums(out)
    kept = [path.name for path in sorted(out.iterdir()) if path.name not in (*checksums, CHECKSUMS)]
    kept += [name for name in (CARD,) if (out / name).is_file() and compute_sha256(out / name) != checksums.get(name)]
    if kept:
        what = f"{out} is an older export of this run, but holds files that were added or edited since"
        raise UserError(f"{what}; move them away, or choose another OUT:", kept)
    return EarlierExport(model, tuple(checksums))


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Writes the checksums of these files of a folder, as ``sha256sum`` does."""
    lines = [f"{compute_sha256(folder / name)}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
