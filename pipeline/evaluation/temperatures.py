"""Finds a run's temperatures on held-out videos, and keeps them in calibration.json beside its evaluation, with the
probabilities by which ``jobs.predict`` rejects videos of no known class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.evaluation.calibration import TEMPERATURES, apply_temperature, compute_calibration, fit_temperature
from pipeline.evaluation.evaluate import evaluate_split
from pipeline.evaluation.evaluation_parts import choose_parts_folder, delete_parts
from pipeline.evaluation.rejection import collect_confidences
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import PREDICTORS, write_text

CALIBRATION_FILE = "calibration.json"
FEW_VIDEOS = 100
"""With fewer held-out videos a temperature is a rough figure, and the command says so. Choice."""


def calibrate(
    source: VideoSource,
    config: Config,
    weights: Path,
    step: int,
    resources: Resources | None,
    out: Path,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores the held-out videos, finds each student's temperature on them, writes calibration.json into ``out``, and returns
    its content:

    ``{"step": s, "protocol": {...}, "weights_sha256": digest, "videos": n, "data": fingerprint, student: {"temperature": T |
    None, "before": figures, "after": figures | None}, ..., "confidences": {"before": [...], "after": [...] | None}}`` and the
    entries of ``about``. T is None where no temperature makes the videos most likely (``fit_temperature``). The figures are
    those of ``compute_calibration`` on the held-out videos, the confidences those of ``collect_confidences`` by the mean.
    ``config.evaluation.split`` must be ``validation``, whose videos have labels.
    """
    assert config.evaluation.split == "validation", "a temperature is never found on test videos"
    parts = choose_parts_folder(source, config, weights, source.find_evaluation_rows("validation"), out)
    summary, scores = evaluate_split(source, config, weights, resources, parts)
    labels = source.columns["label"][scores.videos].astype(np.int64)
    content: dict[str, Any] = {
        "step": step,
        "protocol": summary["protocol"],
        "weights_sha256": summary["weights_sha256"],
        "videos": summary["videos"],
        "data": source.manifest.fingerprint,
        **(about or {}),
    }
    for name in PREDICTORS:
        own = scores.scores[name]
        temperature = fit_temperature(labels, own)
        after = None if temperature is None else compute_calibration(labels, apply_temperature(own, temperature))
        content[name] = {"temperature": temperature, "before": compute_calibration(labels, own), "after": after}
    own, temperature = scores.scores["mean"], content["mean"]["temperature"]
    content["confidences"] = {
        "before": collect_confidences(labels, own),
        "after": None if temperature is None else collect_confidences(labels, apply_temperature(own, temperature)),
    }
    write_text(out / CALIBRATION_FILE, json.dumps(content, indent=1))
    delete_parts(parts, with_other_weights=True)
    return content


def list_calibration_notes(calibration: Mapping[str, Any]) -> list[str]:
    """Lists what a careful reader should know about the temperatures."""
    notes = []
    if calibration["videos"] < FEW_VIDEOS:
        notes.append(f"a temperature of {calibration['videos']} held-out videos is rough; hold more out with jobs.label")
    if none := [name for name in PREDICTORS if calibration[name]["temperature"] is None]:
        low, high = TEMPERATURES
        notes.append(
            f"no temperature for {', '.join(none)}: between {low:g} and {high:g} none makes the held-out videos most likely, "
            "as where all of them are classified correctly, or none better than by chance"
        )
    return notes
