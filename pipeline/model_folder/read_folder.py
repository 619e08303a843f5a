"""Reads a model folder, after its checksums were compared. Nothing in it is executed: there are JSON, text and safetensors.

model.safetensors          the weights of both students: students.primary.*, students.auxiliary.*
config.json                networks, clips, views, precision and test protocol, as keys of the configuration
labels.json                the class names, in the order of the networks' outputs
preprocessor_config.json   what is made of frames before they reach the networks, for programs that are not this one
training.json              where the weights are from: run, step, fingerprints of configuration, manifest and labels
calibration.json           temperatures of the probabilities; only if the run has them
programs.json              what was measured of the programs for other software (.pt2, .onnx), which are never read here;
                           only if there are any
README.md                  the model card
SHA256SUMS                 a checksum for each file above; ``sha256sum -c SHA256SUMS`` compares them, too
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.clips.normalization import MEAN, STD
from pipeline.config import Config, parse_config
from pipeline.errors import UserError

WEIGHTS, CONFIG, LABELS, PREPROCESSING = "model.safetensors", "config.json", "labels.json", "preprocessor_config.json"
TRAINING, CALIBRATION, CARD, CHECKSUMS = "training.json", "calibration.json", "README.md", "SHA256SUMS"
PROGRAMS = "programs.json"
REQUIRED = (WEIGHTS, CONFIG, LABELS, PREPROCESSING, TRAINING)
"""What is compared with its checksum whenever a folder is read; the card may be edited."""
FORMAT_VERSION = 1
KNOBS: dict[str, Any] = {
    "primary": {"network", "clip"},
    "auxiliary": {"network", "clip"},
    "data": {"decode_size"},
    "views": True,
    "train": {"precision", "channels_last", "deterministic"},
    "evaluation": True,
}
"""The part of the configuration that config.json holds, as ``model_dump`` includes it."""
NOT_OF_THE_MODEL = ("split", "batch_views", "checkpoint")
"""Keys of ``evaluation`` that are about data, this machine or a run's folder."""
REMEDY = "export or download it again"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose files are those that were exported."""

    folder: Path
    knobs: Mapping[str, Any]
    """Nested keys of the configuration: those of ``KNOBS``."""
    classes: tuple[str, ...]
    training: Mapping[str, Any]
    """The content of training.json."""
    calibration: Mapping[str, Any]
    """The content of calibration.json; empty if there is none."""

    @property
    def weights(self) -> Path:
        """The path of the file of weights."""
        return self.folder / WEIGHTS


def is_model_folder(folder: Path) -> bool:
    """Whether a folder looks like a model folder, whole or not; a run folder has config.yaml instead."""
    return any((folder / name).is_file() for name in (CHECKSUMS, CONFIG)) and not (folder / "config.yaml").is_file()


def read_model_folder(folder: Path) -> ModelFolder:
    """Reads a model folder. Raises UserError that names each file that is missing, altered, or not what it should be."""
    folder = folder.expanduser().resolve()
    if not is_model_folder(folder):
        raise UserError(
            f"{folder} is not a model folder ({CHECKSUMS} and {CONFIG} are needed): python -m jobs.export writes one"
        )
    checksums = read_checksums(folder)
    names = [*REQUIRED, *([CALIBRATION] if CALIBRATION in checksums else [])]
    if problems := [problem for name in names if (problem := _find_problem(folder / name, checksums.get(name)))]:
        raise UserError(f"{folder} is not a whole model folder; {REMEDY}:", problems)
    knobs = _check_knobs(_read_object(folder / CONFIG), folder / CONFIG)
    classes = _read_classes(folder / LABELS)
    _check_preprocessing(folder, parse_config(knobs, source=str(folder / CONFIG)))
    calibration = _read_object(folder / CALIBRATION) if CALIBRATION in checksums else {}
    return ModelFolder(folder, knobs, classes, _check_training(_read_object(folder / TRAINING), folder), calibration)


def compute_sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checksums(folder: Path) -> dict[str, str]:
    """Reads SHA256SUMS: the checksum of each file by its name. Raises UserError."""
    path = folder / CHECKSUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{folder} is not a whole model folder: {CHECKSUMS} is missing; {REMEDY}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; {REMEDY}") from None
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
        raise UserError(f"{path} is not a list of SHA-256 checksums and file names; {REMEDY}")
    return {name.removeprefix("*"): digest for digest, name in pairs}


def _find_problem(path: Path, expected: str | None) -> str:
    """Says what is wrong with a file, or "" if it is the one that was exported."""
    if not path.is_file():
        return f"{path.name} is missing"
    if expected is None:
        return f"{path.name} has no checksum in {CHECKSUMS}"
    try:
        return "" if compute_sha256(path) == expected else f"{path.name} was altered: its SHA-256 is not that of {CHECKSUMS}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {str(error).splitlines()[0]}; {REMEDY}") from None


def _read_object(path: Path) -> dict[str, Any]:
    content = _read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a JSON object, found {type(content).__name__}; {REMEDY}")
    return content


def _check_knobs(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the nested keys of the configuration, or raises UserError if there are others than a model may set."""
    version = content.get("format_version")
    if content.get("model_type") != "actnetformer" or not isinstance(version, int):
        raise UserError(f"{path} is not of a model of this program (model_type and format_version are missing)")
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}; this program reads up to {FORMAT_VERSION}: update it")
    knobs = {name: value for name, value in content.items() if name not in ("model_type", "format_version")}
    unknown = [name for name in knobs if name not in KNOBS]
    for name, wanted in KNOBS.items():
        below = knobs.get(name)
        if not isinstance(below, dict):
            raise UserError(f"{path}: {name} is missing or no object; {REMEDY}")
        unknown += [f"{name}.{key}" for key in below if wanted is not True and key not in wanted]
        unknown += [f"{name}.{key}" for key in below if name == "evaluation" and key in NOT_OF_THE_MODEL]
    for student in ("primary", "auxiliary"):
        network = knobs[student].get("network")
        if isinstance(network, dict) and network.get("weights") is not None:
            unknown.append(f"{student}.network.weights (the weights are those of {WEIGHTS}, and no others are loaded)")
    if unknown:
        raise UserError(f"{path} has keys that a model folder may not set; {REMEDY}:", unknown)
    return knobs


def _read_classes(path: Path) -> tuple[str, ...]:
    names = _read_json(path)
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path} must be a JSON list of at least 2 class names; {REMEDY}")
    if len(set(names)) != len(names):
        raise UserError(f"{path} names a class twice; {REMEDY}")
    return tuple(names)


def _check_training(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    prints = content.get("fingerprints")
    is_known = isinstance(prints, dict) and {*prints} == {"config", "manifest", "labels"}
    if not is_known or not isinstance(content.get("step"), int):
        raise UserError(f"{folder / TRAINING} lacks fingerprints or step; {REMEDY}")
    return content


def describe_preprocessing(config: Config) -> dict[str, Any]:
    """Describes, for programs that are not this one, what is made of a video's frames before they reach the networks."""
    clips = {name: getattr(config, name).clip.model_dump(mode="json") for name in ("primary", "auxiliary")}
    return {
        "color": "RGB", "shortest_edge": config.data.decode_size,
        "crop": "squares of shortest_edge pixels along the longer side, bilinearly resized to each clip's size",
        "rescale_factor": 1 / 255, "image_mean": [MEAN] * 3, "image_std": [STD] * 3,
        "layout": "batch, channel, time, height, width", "clips": clips,
    }  # fmt: skip


def _check_preprocessing(folder: Path, config: Config) -> None:
    content, own = _read_object(folder / PREPROCESSING), describe_preprocessing(config)
    names = ("shortest_edge", "rescale_factor", "image_mean", "image_std", "clips")
    differing = [f"{name}: {content.get(name)!r}, here {own[name]!r}" for name in names if content.get(name) != own[name]]
    if differing:
        what = f"{folder / PREPROCESSING} describes another preprocessing than this program applies to {CONFIG}'s clips"
        raise UserError(f"{what}; {REMEDY}:", differing)


def read_shapes(weights: Path) -> dict[str, list[int]]:
    """Reads the shape of every tensor from the header of a safetensors file. Raises UserError if it is none."""
    try:
        with safe_open(weights, framework="np") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} is not a safetensors file ({str(error).splitlines()[0]}); {REMEDY}") from None
