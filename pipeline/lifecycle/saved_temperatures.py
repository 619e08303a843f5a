"""Reads the temperatures by which a model's probabilities are calibrated, if it has any for the way in which it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.calibrate import CALIBRATION_FILE
from pipeline.evaluation.calibration import TEMPERATURES, is_of_evaluation
from pipeline.evaluation.protocol import collect_protocol
from pipeline.lifecycle.saved_run import SavedRun
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.run_folder.contents import PREDICTORS


@dataclass(frozen=True)
class SavedTemperatures:
    """The temperatures to apply to a model's probabilities, for ``apply_temperatures``."""

    values: dict[str, float] = field(default_factory=dict)
    """By those of ``PREDICTORS`` that have one; empty if probabilities are to stay as the networks give them."""
    note: str = ""
    """What the user should know: that they are applied, or why they are not; "" if the model has none."""

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
    if not values:
        return SavedTemperatures(note=f"probabilities are not calibrated: {path} found no temperature that makes them better")
    named = ", ".join(f"{value:.3g} ({name})" for name, value in values.items())
    videos = calibration.get("videos")
    return SavedTemperatures(values, f"probabilities are calibrated, by temperatures of {videos} held-out videos: {named}")


def _describe_averages(protocol: Mapping[str, Any]) -> str:
    """Describes what a temperature depends on beside the weights."""
    views = " x ".join(f"{protocol.get(name)} {name}" for name in ("clips", "crops"))
    return f"{views}, mean of {protocol.get('average')}, {protocol.get('precision')}"


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
