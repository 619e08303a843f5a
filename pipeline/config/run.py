"""The whole configuration of a run, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.config.data import DataSection, RunSection
from pipeline.config.method import MethodSection
from pipeline.config.renamed import translate_to_old_names
from pipeline.config.section import SAME_WEIGHTS, Section, select_marked
from pipeline.config.students import AuxiliarySection, PrimarySection, TimeSformerSection
from pipeline.config.training import EvaluationSection, MonitorSection, ScaleSection, TrackingSection, TrainSection
from pipeline.config.views import ViewsSection
from pipeline.files import storage

STUDENTS = ("primary", "auxiliary")
"""The two networks of a run, in the order in which results name them."""


def _is_chain_of_halvings(patch: int, tubelet: int) -> bool:
    return patch.bit_count() == tubelet.bit_count() == 1 and tubelet <= patch


class Config(Section):
    """All knobs of a run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    primary: PrimarySection = PrimarySection()
    auxiliary: AuxiliarySection = AuxiliarySection()
    method: MethodSection = MethodSection()
    views: ViewsSection = ViewsSection()
    train: TrainSection = TrainSection()
    monitors: MonitorSection = Field(MonitorSection(), json_schema_extra=SAME_WEIGHTS)
    tracking: TrackingSection = Field(TrackingSection(), json_schema_extra=SAME_WEIGHTS)
    evaluation: EvaluationSection = Field(EvaluationSection(), json_schema_extra=SAME_WEIGHTS)
    scale: ScaleSection = Field(ScaleSection(), json_schema_extra=SAME_WEIGHTS)

    @model_validator(mode="after")
    def _spans_can_match(self) -> Config:
        frames = self._frames_of_the_same_span()
        if frames is not None and (abs(frames - round(frames)) > 1e-6 or frames < 1):
            slow, fast = self.primary.clip, self.auxiliary.clip
            raise ValueError(
                f"data.match=span: {slow.frames} frames at primary.clip.fps={slow.fps:g} are {frames:g} frames at "
                f"auxiliary.clip.fps={fast.fps:g}, which is not a whole number"
            )
        return self

    @model_validator(mode="after")
    def _segments_cover_the_video(self) -> Config:
        spread = [f"{name}.clip.sampling=segments" for name in STUDENTS if getattr(self, name).clip.sampling == "segments"]
        if spread and self.data.moments == "own":
            raise ValueError(
                f"data.moments=own places the windows of both students apart, but {spread[0]} covers the whole video: leave "
                "data.moments out; each student's segments have random times of their own anyway"
            )
        if spread and self.data.match == "span":
            raise ValueError(
                f"data.match=span makes the auxiliary's window as long as the primary's, but {spread[0]} covers the whole "
                "video: leave data.match out"
            )
        return self

    @model_validator(mode="after")
    def _best_checkpoint_is_known(self) -> Config:
        if self.evaluation.checkpoint == "best" and not self.train.keep_best:
            raise ValueError(
                "evaluation.checkpoint=best evaluates what train.keep_best keeps, which is 0: set train.keep_best=1 before "
                "training, with held-out videos (jobs.label --hold-out 10%), or evaluate the last checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        for name in STUDENTS:
            student = getattr(self, name)
            net, clip = student.network, student.clip
            if isinstance(net, TimeSformerSection):
                if clip.size % net.patch:
                    raise ValueError(f"{name}.network.patch={net.patch} must divide {name}.clip.size={clip.size}")
                if net.stem == "convolutions" and not _is_chain_of_halvings(net.patch, net.tubelet):
                    raise ValueError(
                        f"{name}.network.stem=convolutions halves the picture and time: patch={net.patch} must be a power of 2 "
                        f"and tubelet={net.tubelet} one that is no larger (1, 2, 4, ...)"
                    )
                if clip.frames % net.tubelet:
                    raise ValueError(f"{name}.network.tubelet={net.tubelet} must divide {name}.clip.frames={clip.frames}")
                if net.width % net.heads:
                    raise ValueError(f"{name}.network.heads={net.heads} must divide {name}.network.width={net.width}")
            if clip.size > self.data.decode_size:
                raise ValueError(f"{name}.clip.size={clip.size} is larger than data.decode_size={self.data.decode_size}")
        return self

    @property
    def unlabeled_per_labeled(self) -> int:
        """The ratio mu as the method uses it: 0 for methods that learn from labels only."""
        return 0 if self.method.name == "supervised" else self.data.unlabeled_per_labeled

    @property
    def labels_path(self) -> str:
        """The path of the label subset."""
        return self.data.labels or posixpath.join(posixpath.dirname(self.data.manifest), "labels.parquet")

    @property
    def run_folder(self) -> Path:
        """The local run folder, ``storage_path/name``; for a URI the folder that ``pipeline.run_folder.run_store`` copies
        there."""
        if not storage.is_remote(self.run.storage_path):
            return Path(storage.to_local_path(self.run.storage_path)).expanduser().resolve() / self.run.name
        staging = self.run.staging_path or os.path.join(tempfile.gettempdir(), f"actnetformer-{os.getuid()}")
        folder = hashlib.sha256(self.run.storage_path.rstrip("/").encode()).hexdigest()[:16]
        return Path(staging).expanduser().resolve() / folder / self.run.name

    @property
    def run_store(self) -> str | None:
        """The URI of the run folder if it is on object storage, else None."""
        store = self.run.storage_path.rstrip("/")
        return f"{store}/{self.run.name}" if storage.is_remote(store) else None

    def collect_result_knobs(self) -> dict[str, Any]:
        """Collects the knobs that determine the trained weights: all but those marked ``SAME_WEIGHTS``."""
        return self.model_dump(mode="json", exclude=select_marked(self, "same_weights"))

    def compute_fingerprint(self) -> str:
        """Computes a hash of the knobs that determine the trained weights.

        They have their old names (``pipeline.config.renamed``), and those marked ``LATER`` are left out at their defaults, so
        that recorded runs keep their fingerprints.
        """
        knobs = self.collect_result_knobs()
        _leave_out_defaults(knobs, self, select_marked(self, "later"))
        return hashlib.sha256(json.dumps(translate_to_old_names(knobs), sort_keys=True).encode()).hexdigest()[:16]

    def with_matched_span(self) -> Config:
        """Returns the configuration in which, with ``data.match=span``, the auxiliary's clip is as long as the primary's."""
        frames = self._frames_of_the_same_span()
        if frames is None:
            return self
        clip = self.auxiliary.clip.model_copy(update={"frames": round(frames)})
        return self.model_copy(update={"auxiliary": self.auxiliary.model_copy(update={"clip": clip})})

    def _frames_of_the_same_span(self) -> float | None:
        """Computes how many frames of the auxiliary's clip last as long as the primary's clip; None if they need not."""
        slow, fast = self.primary.clip, self.auxiliary.clip
        return slow.frames / slow.fps * fast.fps if self.data.match == "span" and slow.fps and fast.fps else None

    def with_absolute_paths(self) -> Config:
        """Returns the configuration with absolute local paths, for processes that run in other folders."""
        data = {"manifest": _make_absolute(self.data.manifest), "labels": _make_absolute(self.labels_path)}
        root = {"root": _make_absolute(self.data.root)} if self.data.root else {}
        staging = {"staging_path": _make_absolute(self.run.staging_path)} if self.run.staging_path else {}
        label = self.method.file_label
        file = {"file": _make_absolute(label.file)} if label.file else {}
        return self.model_copy(
            update={
                "method": self.method.model_copy(update={"file_label": label.model_copy(update=file)}),
                "data": self.data.model_copy(update={**data, **root}),
                "run": self.run.model_copy(update={"storage_path": _make_absolute(self.run.storage_path), **staging}),
            }
        )


def _make_absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())


def _leave_out_defaults(knobs: dict[str, Any], section: Section, later: dict[str, Any]) -> None:
    for name, below in later.items():
        if below is not True:
            _leave_out_defaults(knobs[name], getattr(section, name), below)
        elif (value := getattr(section, name)) == type(section).model_fields[name].default:
            del knobs[name]
        elif isinstance(value, Section):  # a later section may have got knobs later still
            _leave_out_defaults(knobs[name], value, select_marked(value, "later"))
