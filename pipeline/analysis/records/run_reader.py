"""Reads what a run left in its folder, completely or in part, without Ray, torch or the videos.

Every file of a run folder may be absent or half-written. What is missing becomes a sentence in ``RunRecord.missing`` and never
an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.analysis.records.run_record import Predictions, RunRecord
from pipeline.config import parse_config, translate_old_names
from pipeline.errors import UserError
from pipeline.evaluation.evaluation_summary import summarize
from pipeline.files.written_yaml import read_written_yaml
from pipeline.model_folder.read_folder import CONFIG, TRAINING, is_model_folder
from pipeline.run_folder.contents import PREDICTORS, flatten

RUN_FILES = ("config.yaml", "facts.json", "metrics.jsonl", "evaluation.json", "predictions.parquet")
OTHER_DATA = "evaluation_on_*.json"
"""The files with evaluations on other data than the run's own, named after that data's fingerprint."""
CALIBRATION = "calibration.json"
"""The file of temperatures, by student."""
ABSENT = {
    "facts.json": "facts.json: versions and label subset are unknown.",
    "evaluation.json": "evaluation.json: not evaluated yet; python -m jobs.evaluate writes it.",
}


def is_run(path: Path) -> bool:
    """Returns whether a folder holds any file of a run, or what ``jobs.evaluate --other-data`` wrote elsewhere."""
    return any((path / name).is_file() for name in RUN_FILES) or (path.is_dir() and any(path.glob(OTHER_DATA)))


def read_run_record(folder: Path) -> RunRecord:
    """Reads all files of a run folder, or of a model folder, but for weights and saved scores."""
    missing: list[str] = []
    is_model = is_model_folder(folder)
    has_own = (folder / "evaluation.json").is_file() or (folder / "predictions.parquet").is_file()
    of_own_data: list[str] = [] if not has_own and any(folder.glob(OTHER_DATA)) else missing  # else said in a sentence
    predictions = read_predictions(folder / "predictions.parquet", of_own_data)
    if is_model:
        config, facts = _read_model(folder, missing)
    else:
        config, facts = read_config_values(folder / "config.yaml", missing), read_json_object(folder / "facts.json", missing)
    run = RunRecord(
        folder=folder,
        config=config,
        facts=facts,
        lines=() if is_model else _read_lines(folder / "metrics.jsonl", missing),
        evaluation=_read_evaluation(folder / "evaluation.json", predictions, of_own_data),
        predictions=predictions,
        quarantine=_read_quarantine(folder / "quarantine.parquet", missing),
        missing=(),
        other_data=_read_other_data(folder, missing),
        calibration=read_json_object(folder / CALIBRATION, missing) if (folder / CALIBRATION).is_file() else {},
        is_model=is_model,
    )
    missing += _explain_other_data(run)
    if run.is_unfinished and run.lines:
        stands = f"The run stands at step {run.last_step:,} of {run.config['train.steps']:,}"
        missing.insert(0, f"{stands}. If nothing runs it now, the command that started it continues and evaluates it.")
    return replace(run, missing=tuple(missing))


def _read_model(folder: Path, missing: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads config.json and training.json of a model folder, by the names that a run's config.yaml and facts.json have for the
    same."""
    training = read_json_object(folder / TRAINING, missing)
    knobs = {name: value for name, value in read_json_object(folder / CONFIG, missing).items() if isinstance(value, dict)}
    method = {"method": "trained elsewhere"} if "trained_elsewhere" in training else {}
    config = {"run.name": folder.name, "run.seed": training.get("seed"), **flatten(knobs)}
    return config, {**training, **method, "versions": training.get("trained_with")}


def _read_other_data(folder: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    paths = sorted(folder.glob(OTHER_DATA))
    contents = [read_json_object(path, missing) for path in paths]
    for path in paths:
        scores = path.with_name(path.stem.replace("evaluation", "predictions", 1) + ".parquet")
        if not scores.is_file():
            missing.append(f"{scores.name}: without it there are no classes and no confusion matrix of that data.")
    return tuple(sorted(filter(None, contents), key=lambda content: str((content.get("data") or {}).get("manifest"))))


def _explain_other_data(run: RunRecord) -> list[str]:
    """Returns a sentence if the evaluation in the folder is of other data than the run was trained on."""
    others = [content for content in run.other_data if content.get("run")]
    elsewhere = {content["run"]: (content.get("other_data") or {}).get("trained_on") for content in others}
    if elsewhere and not run.config:
        runs = [f"{path}, which was trained on the manifest of fingerprint {print_}" for path, print_ in elsewhere.items()]
        return [f"Its own data: these are results of other data than the run's. The run: {'; '.join(runs)}."]
    if run.other_data and not run.evaluation and not run.is_model:
        return ["evaluation.json: not evaluated on its own data yet; python -m jobs.evaluate writes it."]
    data = run.evaluation.get("data") or {}
    if run.evaluation.get("other_data"):
        trained_on = run.evaluation["other_data"].get("trained_on")
        whose = f"{run.evaluation.get('run', 'there')}, which was trained on the manifest of fingerprint {trained_on}"
        return [f"Its own data: these are results of other data than the run's, {data.get('manifest')}. The run: {whose}."]
    fingerprints = {str(data.get("fingerprint") or ""), run.predictions.manifest if run.predictions else ""} - {""}
    if run.manifest_fingerprint and fingerprints - {run.manifest_fingerprint}:
        was = ", ".join(sorted(fingerprints - {run.manifest_fingerprint}))
        return [
            f"Results on the data that it was trained with: those found are of another manifest (fingerprint {was}, the run's "
            f"is {run.manifest_fingerprint}). python -m jobs.evaluate replaces them."
        ]
    return []


def read_config_values(path: Path, missing: list[str]) -> dict[str, Any]:
    """Reads a configuration's values by dotted key. If it cannot be read there are none, and ``missing`` says why; what is
    of another version is returned as it is."""
    try:
        tree = read_written_yaml(path)
        tree = translate_old_names(tree) if isinstance(tree, dict) else tree
        flat = flatten(tree if isinstance(tree, dict) else {})
        return flatten(parse_config(tree, source=str(path)).model_dump(mode="json"))
    except FileNotFoundError:
        missing.append("config.yaml: without it the setting, the seed and the videos are unknown.")
        return {}
    except UserError:
        missing.append("A config.yaml of this version: the one found has other keys and is shown as it is.")
        return flat
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        missing.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
        return {}


def read_json_object(path: Path, missing: list[str]) -> dict[str, Any]:
    """Reads a file of one JSON object. If it cannot be read it counts as empty, and ``missing`` says why."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        return content
    except FileNotFoundError:
        missing.append(ABSENT.get(path.name, f"{path.name} is gone."))
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read: {error}")
        return {}


def _read_lines(path: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        missing.append("metrics.jsonl: no step was logged, so there are no curves.")
    return read_json_lines(path, missing)


def read_json_lines(path: Path, missing: list[str] | None = None) -> tuple[Mapping[str, Any], ...]:
    """Reads a JSON lines file and returns the last line of each ``step``, by ascending step; nothing if there is no file.

    Lines that cannot be read are left out and counted in ``missing``. A last line that a live run has half-written is left
    out, too.
    """
    by_step: dict[int, Mapping[str, Any]] = {}
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    broken = 0
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            by_step[int(line["step"])] = line
        except (ValueError, TypeError, KeyError):
            broken += number < len(texts) and bool(text.strip())
    if broken and missing is not None:
        missing.append(f"{broken} of {len(texts):,} lines of {path.name}: they cannot be read.")
    return tuple(by_step[step] for step in sorted(by_step))


def read_predictions(path: Path, missing: list[str]) -> Predictions | None:
    """Reads a file of scores; None if it cannot be read, and ``missing`` then gets a sentence that says why."""
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"actnetformer"])
        classes = about["classes"]
        scores = {predictor: np.array(table[predictor].to_pylist(), dtype=np.float64) for predictor in PREDICTORS}
        if not table.num_rows or any(values.shape != (table.num_rows, len(classes)) for values in scores.values()):
            raise ValueError(f"{table.num_rows} rows do not hold {len(classes)} scores each")
        labels = table["label"].to_numpy().astype(np.int64)
        ids = tuple(map(str, table["id"].to_pylist()))
        return Predictions(ids, labels, scores, tuple(classes), str(about.get("manifest") or ""))
    except FileNotFoundError:
        missing.append("predictions.parquet: without it there are no confusion matrix and no sample clips.")
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        missing.append(f"predictions.parquet cannot be read: {error}")
    return None


def _read_evaluation(path: Path, predictions: Predictions | None, missing: list[str]) -> dict[str, Any]:
    if predictions is not None and not path.is_file():
        return summarize(predictions.labels, predictions.scores, predictions.classes)
    return read_json_object(path, missing)


def _read_quarantine(path: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(pq.read_table(path).to_pylist()) if path.is_file() else ()
    except (OSError, pa.ArrowException) as error:
        missing.append(f"quarantine.parquet cannot be read: {error}")
        return ()
