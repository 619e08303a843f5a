"""Reads what calibration.json says of a model, if it is of the way in which the model is used: the temperatures by which its
probabilities are calibrated, and below which probability a video is rejected as none of its classes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.calibration import TEMPERATURES, is_of_evaluation
from pipeline.evaluation.protocol import collect_protocol
from pipeline.evaluation.rejection import LARGEST_SHARE, Rejection, count_least, find_rejection
from pipeline.evaluation.temperatures import CALIBRATION_FILE
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.run_folder.contents import PREDICTORS
from pipeline.saved_models.saved_run import SavedRun


@dataclass(frozen=True)
class SavedTemperatures:
    """The temperatures to apply to a model's probabilities, for ``apply_temperatures``."""

    values: dict[str, float] = field(default_factory=dict)
    """By those of ``PREDICTORS`` that have one; empty if probabilities are to stay as the networks give them."""
    note: str = ""
    """What the user should know: that they are applied, or why they are not; "" if the model has none."""
    confidences: dict[str, list[float]] = field(default_factory=dict)
    """``before`` and, with a temperature of the mean, ``after`` it is applied: what ``collect_confidences`` returned of the
    held-out videos. Empty if calibration.json is of something else, or of a version that did not write them."""

    @property
    def is_calibrated(self) -> bool:
        """Whether the probabilities of the mean of both networks are calibrated."""
        return "mean" in self.values


def read_temperatures(saved: SavedRun) -> SavedTemperatures:
    """Reads the temperatures of an opened run or model. They are applied only to the weights, precision and averaging over
    clips and crops on which they were found. Raises UserError if calibration.json is damaged.
    """
    path, calibration = saved.folder / CALIBRATION_FILE, saved.calibration
    if calibration is None:  # a run
        try:
            calibration = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return SavedTemperatures()
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it, or calibrate again") from None
        weights = compute_sha256(saved.weights)
    else:  # a model, whose checksums say that the temperatures were exported with these weights
        weights = str(calibration.get("weights_sha256"))
    if calibration == {}:
        return SavedTemperatures()
    if not isinstance(calibration, Mapping):
        raise UserError(f"{path} must be a JSON object: delete it, or calibrate again")
    values = _check_values(calibration, str(path))
    used: dict[str, Any] = {"step": saved.step, "protocol": collect_protocol(saved.config), "weights_sha256": weights}
    if not is_of_evaluation(calibration, used):
        found_with, here = (_describe_averages(one.get("protocol") or {}) for one in (calibration, used))
        why = f"of {found_with}, and this is {here}" if found_with != here else "of other weights"
        return SavedTemperatures(note=f"probabilities are not calibrated: {path} has temperatures {why}")
    confidences = _check_confidences(calibration, str(path))
    if not values:
        note = f"probabilities are not calibrated: {path} found no temperature that makes them better"
        return SavedTemperatures(note=note, confidences=confidences)
    named = ", ".join(f"{value:.3g} ({name})" for name, value in values.items())
    videos = calibration.get("videos")
    note = f"probabilities are calibrated, by temperatures of {videos} held-out videos: {named}"
    return SavedTemperatures(values, note, confidences)


def choose_rejection(saved: SavedRun, found: SavedTemperatures, share: float, is_calibrated: bool) -> Rejection:
    """Finds below which probability a video is rejected, so that at most ``share`` of the videos of known classes are.

    ``is_calibrated`` says whether ``found`` is applied to the probabilities of the mean. Raises UserError, with the remedy, if
    there are no or too few held-out videos by these weights and this protocol.
    """
    path, option = saved.folder / CALIBRATION_FILE, f"--reject-unknown {100 * share:g}%"
    confidences = found.confidences.get("after" if is_calibrated else "before", [])
    if not confidences:
        why = "" if found.is_calibrated or not found.note else f" ({found.note})"
        what = f"{option} needs the probabilities of held-out videos by these weights and this protocol; {path} has none{why}"
        remedy = "python -m jobs.evaluate RUN --calibrate writes them, and jobs.export takes them along to a model"
        raise UserError(f"{what}: {remedy}; the videos must be kept from training, by jobs.label --hold-out 10%")
    rejection = find_rejection(confidences, share)
    if rejection is None:
        least = math.ceil(1000 / (len(confidences) + 1)) / 10
        what = f"{option} needs at least {count_least(share)} held-out videos, and {path} is of {len(confidences)}"
        larger = f", or write {least:g}% or more" if least <= 100 * LARGEST_SHARE else ""
        raise UserError(f"{what}: hold out more with jobs.label, and train and calibrate again{larger}")
    return rejection


def _describe_averages(protocol: Mapping[str, Any]) -> str:
    """Describes what a temperature depends on beside the weights."""
    views = " x ".join(f"{protocol.get(name)} {name}" for name in ("clips", "crops"))
    return f"{views}, mean of {protocol.get('average')}, {protocol.get('precision')}"


def _check_confidences(calibration: Mapping[str, Any], where: str) -> dict[str, list[float]]:
    """Returns the confidences that there are. Raises UserError for what can be none."""
    found = calibration.get("confidences")
    confidences = {}
    for when in ("before", "after"):
        values = found.get(when) if isinstance(found, Mapping) else None
        if values is None:
            continue
        if not isinstance(values, list) or not all(isinstance(value, float | int) and 0 <= value <= 1 for value in values):
            raise UserError(f"{where}: confidences.{when} is not a list of numbers from 0 to 1: calibrate again")
        confidences[when] = [float(value) for value in values]
    return confidences


def _check_values(calibration: Mapping[str, Any], where: str) -> dict[str, float]:
    """Returns the temperatures that there are. Raises UserError for a value that can be none."""
    low, high = TEMPERATURES
    values = {}
    for name in PREDICTORS:
        part = calibration.get(name)
        value = part.get("temperature") if isinstance(part, dict) else 0.0
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, float | int) or not low <= value <= high:
            raise UserError(f"{where}: {name}.temperature is {value!r}, not a number from {low:g} to {high:g}: calibrate again")
        values[name] = float(value)
    return values
