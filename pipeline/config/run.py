"""All knobs of a run together, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tempfile
from pathlib import Path
from typing import Any

from pydantic import model_validator

from pipeline.config.data import DataSection, RunSection
from pipeline.config.method import MethodSection
from pipeline.config.section import Section
from pipeline.config.students import AuxiliarySection, PrimarySection, TimeSformerSection
from pipeline.config.training import EvaluationSection, MonitorSection, ScaleSection, TrackingSection, TrainSection
from pipeline.config.views import ViewsSection
from pipeline.files import storage

STUDENTS = ("primary", "auxiliary")
LATER_KNOBS = (("clip", "sampling", "window"), ("network", "stem", "patch"))
"""Knobs of a student that runs were recorded without: section, name, and the value that means what was before."""


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
    monitors: MonitorSection = MonitorSection()
    tracking: TrackingSection = TrackingSection()
    evaluation: EvaluationSection = EvaluationSection()
    scale: ScaleSection = ScaleSection()

    @model_validator(mode="after")
    def _spans_match(self) -> Config:
        slow, fast = self.primary.clip, self.auxiliary.clip
        if self.data.match == "span" and slow.fps and fast.fps:
            frames = slow.frames / slow.fps * fast.fps
            if abs(frames - round(frames)) > 1e-6 or frames < 1:
                raise ValueError(
                    f"data.match=span: {slow.frames} frames at primary.clip.fps={slow.fps:g} are {frames:g} frames at "
                    f"auxiliary.clip.fps={fast.fps:g}, which is no whole number"
                )
            clip = fast.model_copy(update={"frames": round(frames)})
            object.__setattr__(self, "auxiliary", self.auxiliary.model_copy(update={"clip": clip}))
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
        """mu as the method uses it: 0 for methods that learn from labels only."""
        return 0 if self.method.name == "supervised" else self.data.unlabeled_per_labeled

    @property
    def labels_path(self) -> str:
        """Path of the label subset."""
        return self.data.labels or posixpath.join(posixpath.dirname(self.data.manifest), "labels.parquet")

    @property
    def run_folder(self) -> Path:
        """``storage_path/name``; for a URI the local folder that is copied there (see ``pipeline.run_folder.run_store``)."""
        if not storage.is_remote(self.run.storage_path):
            return Path(storage.local_path(self.run.storage_path)).expanduser().resolve() / self.run.name
        staging = self.run.staging_path or os.path.join(tempfile.gettempdir(), f"actnetformer-{os.getuid()}")
        place = hashlib.sha256(self.run.storage_path.rstrip("/").encode()).hexdigest()[:16]
        return Path(staging).expanduser().resolve() / place / self.run.name

    @property
    def run_store(self) -> str | None:
        """URI of the run folder where it lies on object storage, else None."""
        place = self.run.storage_path.rstrip("/")
        return f"{place}/{self.run.name}" if storage.is_remote(place) else None

    def result_knobs(self) -> dict[str, Any]:
        """The knobs that determine the trained weights: not names and places, not scale, logging or evaluation."""
        return self.model_dump(
            mode="json",
            exclude={
                "run": {"name", "storage_path", "staging_path"},
                "data": {
                    "manifest",
                    "labels",
                    "root",
                    "clips_per_block",
                    "blocks_ahead",
                    "max_quarantined_share",
                    "decode_timeout_seconds",
                    "isolate_decoder",
                    "video_timeout_seconds",
                    "decoder_memory_mb",
                },
                "train": {
                    "log_every",
                    "save_scores_every",
                    "checkpoint_every",
                    "keep_checkpoints",
                    "keep_best",
                    "max_failures",
                    "step_timeout_seconds",
                    "compile",
                    "activation_checkpointing",
                },
                "monitors": True,
                "tracking": True,
                "evaluation": True,
                "scale": True,
            },
        )

    def fingerprint(self) -> str:
        """Hash of ``result_knobs``, without ``LATER_KNOBS`` that are as if they were not there: older runs keep theirs."""
        knobs = self.result_knobs()
        for name in STUDENTS:
            for section, knob, before in LATER_KNOBS:
                if knobs[name][section].get(knob) == before:
                    del knobs[name][section][knob]
        return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]

    def with_absolute_paths(self) -> Config:
        """The same with local paths made absolute, for processes that run in other folders."""
        data = {"manifest": _absolute(self.data.manifest), "labels": _absolute(self.labels_path)}
        root = {"root": _absolute(self.data.root)} if self.data.root else {}
        staging = {"staging_path": _absolute(self.run.staging_path)} if self.run.staging_path else {}
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={**data, **root}),
                "run": self.run.model_copy(update={"storage_path": _absolute(self.run.storage_path), **staging}),
            }
        )


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())
