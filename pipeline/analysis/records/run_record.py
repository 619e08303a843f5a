"""What the folder of one run says, whoever reads it: the run's own values, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import MonitorSection
from pipeline.evaluation.protocol import describe_protocol
from pipeline.training.monitoring.failure_signatures import FailureSignature, find_signatures


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
