"""Reads what a run left in its folder, completely or in part, without Ray, torch or the videos.

Every file of a run folder may be absent or half-written. What is missing becomes a sentence in ``RunRecord.missing`` and never
an exception.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.config import MonitorSection, parse_config, translate_old_names
from pipeline.errors import UserError
from pipeline.evaluation.evaluation_summary import summarize
from pipeline.evaluation.protocol import describe_protocol
from pipeline.model_folder.read_folder import CONFIG, TRAINING, is_model_folder
from pipeline.run_folder.contents import PREDICTORS, flatten
from pipeline.training.monitoring.failure_signatures import FailureSignature, find_signatures

RUN_FILES = ("config.yaml", "facts.json", "metrics.jsonl", "evaluation.json", "predictions.parquet")
OTHER_DATA = "evaluation_on_*.json"
"""The files with evaluations on other data than the run's own, named after that data's fingerprint."""
CALIBRATION = "calibration.json"
"""The file of temperatures, by student."""
ABSENT = {
    "facts.json": "facts.json: versions and label subset are unknown.",
    "evaluation.json": "evaluation.json: not evaluated yet; python -m jobs.evaluate writes it.",
}


@dataclass(frozen=True)
class Predictions:
    """The scores of the test videos, in the order of the file."""

    ids: tuple[str, ...]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    """[N] int64 true classes, -1 if unknown."""
    scores: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    """Softmax scores [N, K] by predictor (``PREDICTORS``)."""
    classes: tuple[str, ...]
    manifest: str = ""
    """The fingerprint of the manifest that lists the videos; "" if the file does not tell."""


@dataclass(frozen=True)
class RunRecord:
    """What one run folder says. For an absent file the field is empty, and ``missing`` has a sentence.

    A run that is being trained is ``pipeline.training.loop.TrainingRun``.
    """

    folder: Path
    config: Mapping[str, Any]
    """The configuration's values by dotted key."""
    facts: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]
    """The lines of metrics.jsonl by ascending step; a step that was trained again after a restart counts once, the last
    time."""
    evaluation: Mapping[str, Any]
    predictions: Predictions | None
    quarantine: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...]
    other_data: tuple[Mapping[str, Any], ...] = ()
    """The contents of evaluation_on_*.json, which jobs.evaluate --other-data wrote, sorted by the name of the data."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """The content of calibration.json, which jobs.evaluate --calibrate wrote; empty if there is none."""
    is_model: bool = False
    """Whether the folder is a model folder, which has no training."""

    @property
    def name(self) -> str:
        """The name of the run, or of its folder if the configuration is missing."""
        return str(self.config.get("run.name", self.folder.name))

    @property
    def method(self) -> str:
        """The value of ``method.name``, for example ``actnetformer``, or ``unknown``."""
        return str(self.config.get("method.name") or self.facts.get("method") or "unknown")

    @property
    def seed(self) -> int | None:
        """The value of ``run.seed``."""
        return self.config.get("run.seed")

    @property
    def labels(self) -> Mapping[str, Any]:
        """The label subset: its spec, seed, fingerprint and count."""
        found = self.facts.get("labels")
        return found if isinstance(found, dict) else {}

    @property
    def _fingerprints(self) -> Mapping[str, Any]:
        fingerprints = self.facts.get("fingerprints")
        return fingerprints if isinstance(fingerprints, dict) else {}

    @property
    def manifest_fingerprint(self) -> str:
        """The fingerprint of the manifest that the run was trained on; "" if it is unknown."""
        return str(self._fingerprints.get("manifest") or "")

    @property
    def labels_fingerprint(self) -> str:
        """The fingerprint of the label subset that the run was trained with; "" if it is unknown."""
        return str(self._fingerprints.get("labels") or self.labels.get("fingerprint") or "")

    @property
    def file_labels_fingerprint(self) -> str:
        """The fingerprint of the labels that a file gave to unlabeled videos; "" if there was no file."""
        return str(self._fingerprints.get("file_labels") or "")

    @cached_property
    def signatures(self) -> tuple[FailureSignature, ...]:
        """The failure signatures in the metrics, by the limits of the run's own monitors; none if its classes are unknown."""
        classes = self.facts.get("classes") or self.evaluation.get("classes") or ()
        own = {key.removeprefix("monitors."): value for key, value in self.config.items() if key.startswith("monitors.")}
        try:
            limits = MonitorSection.model_validate(own)
            return tuple(find_signatures(self.lines, limits, len(classes))) if len(classes) > 1 else ()
        except (TypeError, ValueError):  # limits or lines of another version
            return ()

    @property
    def last_step(self) -> int:
        """The last step that any file mentions; 0 if none does."""
        logged = int(self.lines[-1]["step"]) if self.lines else 0
        return max(logged, int(self.evaluation.get("step") or 0), int(self.facts.get("step") or 0))  # of a model: its weights'

    @property
    def split(self) -> str:
        """The split that the run is evaluated on: ``test`` or ``validation``."""
        return str(self.evaluation.get("split") or self.config.get("evaluation.split") or "test")

    def describe_protocol(self, with_step: bool = True) -> str:
        """Describes in a phrase how the run was evaluated; "" if it was not."""
        step = {} if with_step or self.evaluation.get("step") == 0 else {"step": None}  # 0: weights trained elsewhere
        return describe_protocol({**self.completed_evaluation, **step})

    @property
    def completed_evaluation(self) -> dict[str, Any]:
        """The content of evaluation.json; what an earlier version did not write of the protocol is taken from the run's
        configuration. Empty if the run was not evaluated."""
        if not self.evaluation:
            return {}
        names = ("clips", "crops", "average", "checkpoint")
        configured = {name: self.config[f"evaluation.{name}"] for name in names if f"evaluation.{name}" in self.config}
        return {**configured, **self.evaluation, "split": self.split}

    @property
    def is_unfinished(self) -> bool:
        """Whether steps are left to train. The log lags behind by up to ``train.log_every`` steps."""
        steps, every = self.config.get("train.steps"), self.config.get("train.log_every", 1)
        return bool(steps and self.last_step + every <= steps)

    @property
    def seconds(self) -> float | None:
        """The seconds that training the logged steps took, without start-up, evaluation and repeated steps; None if none was
        logged."""
        return sum(self._list_seconds()) if self.lines else None

    @property
    def clips(self) -> float | None:
        """The number of clips in the logged steps, repetitions included; None if it was not logged."""
        rates = [line.get("clips_per_second") for line in self.lines]
        if not self.lines or None in rates:
            return None
        return float(sum(rate * time for rate, time in zip(rates, self._list_seconds(), strict=True) if rate is not None))

    def _list_seconds(self) -> list[float]:
        """Returns for each line the mean seconds per step times the steps since the line before."""
        steps = [0, *(int(line["step"]) for line in self.lines)]
        spans = [after - before for before, after in pairwise(steps)]
        return [span * float(line.get("seconds/step") or 0.0) for span, line in zip(spans, self.lines, strict=True)]

    def get_top1(self, predictor: str) -> float | None:
        """Returns the top-1 accuracy of one of ``PREDICTORS`` in percent; None before the evaluation."""
        share = (self.evaluation.get(predictor) or {}).get("top1")
        return None if share is None or not math.isfinite(share) else 100 * share


def name_data(evaluation: Mapping[str, Any]) -> str:
    """Names the data of an evaluation by the last two names of its manifest's path; the table of evaluations has all of it."""
    return "/".join(Path(str((evaluation.get("data") or {}).get("manifest"))).parts[-2:])


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
        config, facts = _read_config(folder / "config.yaml", missing), _read_json(folder / "facts.json", missing)
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
        calibration=_read_json(folder / CALIBRATION, missing) if (folder / CALIBRATION).is_file() else {},
        is_model=is_model,
    )
    missing += _explain_other_data(run)
    if run.is_unfinished and run.lines:
        missing.append(f"The run stands at step {run.last_step:,} of {run.config['train.steps']:,}: under way or stopped.")
    return replace(run, missing=tuple(missing))


def _read_model(folder: Path, missing: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads config.json and training.json of a model folder, by the names that a run's config.yaml and facts.json have for the
    same."""
    training = _read_json(folder / TRAINING, missing)
    knobs = {name: value for name, value in _read_json(folder / CONFIG, missing).items() if isinstance(value, dict)}
    method = {"method": "trained elsewhere"} if "trained_elsewhere" in training else {}
    config = {"run.name": folder.name, "run.seed": training.get("seed"), **flatten(knobs)}
    return config, {**training, **method, "versions": training.get("trained_with")}


def _read_other_data(folder: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    paths = sorted(folder.glob(OTHER_DATA))
    contents = [_read_json(path, missing) for path in paths]
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


def read_outcome(folder: Path) -> Mapping[str, Any]:
    """Reads evaluation.json if the run has come to its end, else returns nothing; no other large file is read."""
    evaluation = _read_json(folder / "evaluation.json", [])
    steps = _read_config(folder / "config.yaml", []).get("train.steps") if evaluation else None
    return evaluation if steps and evaluation.get("trained_steps", evaluation.get("step")) == steps else {}


@dataclass(frozen=True)
class LoggedProgress:
    """How far a run is."""

    method: str
    """The value of ``method.name``, or ``unknown``."""
    step: int
    """The last step that was logged; 0 if none was."""
    steps: int | None
    """The steps that it is trained for; None if config.yaml does not tell."""
    seconds_per_step: float | None = None
    """The mean of the last logged steps; None if none was logged."""
    seconds_left: float | None = None
    """The time left as the last logged line estimates it; None if none was logged."""
    data_wait: float | None = None
    """The share (0..1) of its last logged steps that the run waited for data."""


def read_logged_progress(folder: Path) -> LoggedProgress:
    """Reads how far a run is from config.yaml and metrics.jsonl, either of which may be missing."""
    config, lines = _read_config(folder / "config.yaml", []), read_json_lines(folder / "metrics.jsonl")
    last = lines[-1] if lines else {}
    seconds, waited = last.get("seconds/step"), last.get("seconds/data")
    return LoggedProgress(
        str(config.get("method.name") or "unknown"),
        int(last.get("step", 0)),
        config.get("train.steps"),
        seconds,
        last.get("eta_seconds"),
        waited / max(seconds, 1e-9) if seconds is not None and waited is not None else None,
    )


def read_last_failure(folder: Path) -> Mapping[str, Any] | None:
    """Reads the last line of failures.jsonl: when and at which step a worker failed, and why; None if none did."""
    path = folder / "failures.jsonl"
    for text in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []):
        try:
            line = json.loads(text)
        except ValueError:  # a kill has cut it off
            continue
        if isinstance(line, dict):
            return line
    return None


def _read_config(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def _read_json(path: Path, missing: list[str]) -> dict[str, Any]:
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
    return _read_json(path, missing)


def _read_quarantine(path: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(pq.read_table(path).to_pylist()) if path.is_file() else ()
    except (OSError, pa.ArrowException) as error:
        missing.append(f"quarantine.parquet cannot be read: {error}")
        return ()
