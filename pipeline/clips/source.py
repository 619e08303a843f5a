"""Decodes the videos of run rows: decode tasks, threads and benchmarks all call the same ``VideoSource.decode_rows``."""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.clips.decode import DecodeError, UInt8s, Video, decode_clips, decode_moments
from pipeline.clips.isolated_decode import get_isolated_decoder
from pipeline.clips.plan import Plan
from pipeline.clips.sampling import Moment
from pipeline.config import ClipSection, Config
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.manifest.label_subset import LabelSubset, read_labels
from pipeline.manifest.memory_mapped import open_manifest
from pipeline.manifest.schema import Manifest
from pipeline.processes.isolation import ProcessLimits
from pipeline.seeds import Floats, Ints

Columns = dict[str, npt.NDArray[Any]]
Clips = tuple[UInt8s, UInt8s]
"""The primary's and the auxiliary's clips."""
MAX_SUBSTITUTES = 32
"""How many substitutes are tried for a slot before the run stops."""


@dataclass(frozen=True)
class VideoSource:
    """The videos of a manifest, decoded as a plan and the students' clips ask for.

    Pickled it has 8 bytes for each unlabeled video, and the table if the manifest is small.
    """

    manifest: Manifest
    plan: Plan
    clips: tuple[ClipSection, ClipSection]
    """The primary's and the auxiliary's."""
    size: int
    """The shorter side of decoded frames in pixels: data.decode_size."""
    held_out: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Manifest rows of the labeled training videos that are kept for validation."""
    first_unlabeled_row: int = 0
    """Rows before it belong to steps that use no unlabeled videos: those slots are planned but neither decoded nor used."""
    own_moments: bool = False
    """Whether the auxiliary's clip lies elsewhere in time than the primary's: data.moments."""
    limits: ProcessLimits | None = None
    """The limits of a decoder process for one video; None: videos are decoded in this process."""
    cache_bytes: int = 0
    """How many bytes of decoded videos each decoding process keeps: data.decoded_cache_mb."""
    given_labels: Mapping[int, int] = field(default_factory=dict)
    """Labels by manifest row that people gave, where the manifest has another one or none."""

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The manifest's columns by ``open_video_columns``, with the labels that people gave."""
        columns = open_video_columns(self.manifest)
        return columns | {"label": Column(columns["label"].values, self.given_labels)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "columns"}  # they are the manifest's

    def check_fingerprint(self, fingerprint: str) -> Self:
        """Returns itself, or raises UserError if its manifest has another fingerprint than the one that was planned with.

        A mapped manifest is opened where a task runs, and may have been written again since.
        """
        if self.manifest.fingerprint != fingerprint:
            raise UserError(
                f"manifest {self.manifest.path} was written again while a command used it (fingerprint {fingerprint} before, "
                f"now {self.manifest.fingerprint}): put the earlier one back, or start another run"
            )
        return self

    def decode_rows(self, rows: Ints, pool: Executor | None = None) -> Columns:
        """Decodes [B] run rows: ``row`` [B], ``video`` and ``label`` [B, S], ``primary`` and ``auxiliary`` [B, S, T, H, W, 3].

        Slots that are not used hold video and label -1 and blank clips, and so does a row of -1, which stands for no row.
        ``quarantined`` [B] holds a JSON list of the row's failed videos, ``seconds`` [B] the time that decoding took.
        Videos are decoded in the threads of ``pool``, if it is given.
        """
        planned = self.plan.choose_videos(np.maximum(rows, 0))
        moments, crop_positions = self.draw_moments(np.maximum(rows, 0))
        shape = planned.shape
        primary, auxiliary = self._make_blank_clips(*shape)
        jobs = [
            (
                int(row),
                slot,
                int(planned[index, slot]),
                moments[index][slot],
                crop_positions[index, slot],
                (primary[index, slot], auxiliary[index, slot]),
            )
            for index, row in enumerate(rows)
            for slot in range(self.plan.slots)
        ]
        slots = list((pool.map if pool else map)(lambda job: self._decode_slot(*job), jobs))
        videos = np.array([slot.video for slot in slots], dtype=np.int64).reshape(shape)
        labels = np.where(videos < 0, -1, self.columns["label"][np.maximum(videos, 0)]).astype(np.int64)
        failures = np.array([json.dumps(slot.failures) for slot in slots], dtype=object).reshape(shape)
        return {
            "row": np.asarray(rows, dtype=np.int64),
            "video": videos,
            "label": labels,
            "primary": primary,
            "auxiliary": auxiliary,
            "quarantined": np.array([_join_records(row) for row in failures]),
            "seconds": np.array([slot.seconds for slot in slots]).reshape(shape).sum(axis=1),
        }

    def draw_moments(self, rows: Ints) -> tuple[list[list[Moment]], Floats]:
        """Returns for [B] run rows where in time both students' clips of each slot lie, [B][S], and where on the frame's longer
        side the decoded square lies, [B, S] from 0 to 1."""
        drawn = self.plan.draw_moments(rows)
        if not self.own_moments and all(clip.sampling == "window" for clip in self.clips):
            return drawn[:, :, 0].tolist(), drawn[:, :, 1]
        by_student: list[list[list[Any]]] = [
            self.plan.draw_segment_moments(rows, student, clip.frames).tolist()
            if clip.sampling == "segments"
            else drawn[:, :, 2 if student and self.own_moments else 0].tolist()
            for student, clip in enumerate(self.clips)
        ]
        moments: list[list[Moment]] = [
            [tuple(tuple(m) if isinstance(m, list) else m for m in slot) for slot in zip(*row, strict=True)]
            for row in zip(*by_student, strict=True)
        ]
        return moments, drawn[:, :, 1]

    def decode_views(self, videos: Ints, moments: Floats, crop_positions: Floats) -> Columns:
        """Decodes n test views: ``primary`` and ``auxiliary`` [n, T, H, W, 3], and ``reason`` [n], why a view failed, or "".

        Every view opens its file; ``evaluation_views.decode_videos`` opens it once for several views of a video.
        """
        primary, auxiliary = self._make_blank_clips(len(videos))
        reasons = []
        for index, (video, moment, crop_position) in enumerate(zip(videos, moments, crop_positions, strict=True)):
            try:
                self.decode_clips(int(video), float(moment), float(crop_position), (primary[index], auxiliary[index]))
                reasons.append("")
            except DecodeError as error:
                reasons.append(str(error) or "unknown")
        return {
            "video": np.asarray(videos, dtype=np.int64),
            "primary": primary,
            "auxiliary": auxiliary,
            "reason": np.array(reasons),
        }

    def decode_clips(self, video: int, moment: Moment, crop_position: float, out: Clips) -> None:
        """Decodes both students' clips of a video into ``out``, uint8 [T, H, W, 3]. Raises DecodeError, ``out`` unchanged, and
        UserError if the video's store does not answer for long."""
        request = (self.describe_video(video), moment, crop_position, self.clips, self.size)
        if self.limits is not None:
            isolated = get_isolated_decoder(self.limits, self.cache_bytes)
            storage.wait_for_store(lambda: isolated.decode_clips(*request, out))
        else:
            for array, clip in zip(out, storage.wait_for_store(lambda: decode_clips(*request, self.cache_bytes)), strict=True):
                np.copyto(array, clip)

    def decode_moments(self, video: int, moments: Sequence[Moment]) -> tuple[UInt8s, tuple[Ints, ...]]:
        """Decodes the frames of a video that both students' clips at these moments show; returns what ``decode_moments``
        returns."""
        request = (self.describe_video(video), moments, self.clips, self.size)
        if self.limits is None:
            return storage.wait_for_store(lambda: decode_moments(*request, self.cache_bytes))
        decode = get_isolated_decoder(self.limits, self.cache_bytes).decode_moments
        return storage.wait_for_store(lambda: decode(*request))

    def find_evaluation_rows(self, split: str) -> Ints:
        """Returns the manifest rows of ``evaluation.split``. Raises UserError if there are none."""
        rows = self.manifest.find_usable_rows("test") if split == "test" else self.held_out
        if split == "validation" and len(rows) == 0:
            rows = self.manifest.find_usable_rows("val")
        if len(rows) == 0:
            remedy = "keep some with jobs.label --hold-out 10%"
            if split == "test":
                has_val = len(self.manifest.find_usable_rows("val")) > 0
                others = "those of split val" if has_val else f"held-out training videos ({remedy})"
                remedy = f"evaluate {others} with evaluation.split=validation, or prepare the data with test videos"
            raise UserError(f"{self.manifest.path} has no usable video to evaluate in split {split!r}: {remedy}")
        return rows

    def describe_video(self, row: int) -> Video:
        """Returns what the decoder needs to know about the video of a manifest row."""
        return describe_video(self.manifest, self.columns, row)

    def _make_blank_clips(self, *shape: int) -> Clips:
        """Makes zeros [..., T, H, W, 3] for each student, whose memory the system hands out as it is written to."""
        primary, auxiliary = (np.zeros((*shape, clip.frames, self.size, self.size, 3), dtype=np.uint8) for clip in self.clips)
        return primary, auxiliary

    def _decode_slot(self, row: int, slot: int, planned: int, moment: Moment, crop_position: float, out: Clips) -> _DecodedSlot:
        """Decodes into ``out`` the planned video, or its first substitute that can be decoded, and records failures."""
        failures: list[dict[str, object]] = []
        begun = time.perf_counter()
        if min(row, planned) < 0 or (slot > 0 and row < self.first_unlabeled_row):
            return _DecodedSlot(-1, failures, 0.0)
        candidates = (self.plan.substitute(row, slot, attempt) for attempt in range(1, MAX_SUBSTITUTES + 1))
        tried: set[int] = set()
        for video in itertools.chain([planned], candidates):
            if video in tried:
                continue
            if failures:
                failures[-1]["replaced_by"] = video
            try:
                self.decode_clips(video, moment, float(crop_position), out)
                return _DecodedSlot(video, failures, time.perf_counter() - begun)
            except DecodeError as error:
                tried.add(video)
                uri = self.manifest.locate(video)
                failures.append({"row": row, "slot": slot, "video": video, "uri": uri, "reason": str(error), "replaced_by": -1})
        last = failures[-1]
        raise UserError(
            f"{len(tried)} videos in a row cannot be decoded on {platform.node()}, the last: {last['uri']}: {last['reason']}"
        )


@dataclass(frozen=True)
class _DecodedSlot:
    video: int
    failures: list[dict[str, object]]
    seconds: float


def open_source(config: Config, first_unlabeled_step: int = 0) -> tuple[VideoSource, LabelSubset]:
    """Opens the manifest and label subset that a configuration names. Raises UserError for whatever is wrong with them.

    Unlabeled videos are decoded from ``first_unlabeled_step`` on (see ``pipeline.methods.find_first_unlabeled_step``).
    """
    manifest = open_manifest(config.data.manifest, config.data.root)
    labels = read_labels(config.labels_path, manifest)
    train = manifest.find_training_rows()
    labeled = np.asarray(labels.rows, dtype=np.int64)
    labeled = labeled[np.isin(labeled, train, assume_unique=True)]
    if len(labeled) == 0:
        raise UserError("the label subset names no usable training video: draw one with jobs.prepare --labeled")
    plan = Plan(
        labeled=labeled,
        unlabeled=train[~np.isin(train, np.concatenate([labels.rows, labels.held_out, labels.excluded]))],
        unlabeled_per_labeled=config.unlabeled_per_labeled,
        rows_per_step=config.data.labeled_per_step,
        seed=config.run.seed,
    )
    source = VideoSource(
        manifest=manifest,
        plan=plan,
        clips=(config.primary.clip, config.auxiliary.clip),
        size=config.data.decode_size,
        held_out=labels.held_out,
        first_unlabeled_row=first_unlabeled_step * config.data.labeled_per_step,
        own_moments=config.data.moments == "own",
        limits=_decoder_limits(config),
        cache_bytes=_count_cache_bytes(config),
        given_labels=labels.given,
    )
    return source, labels


def open_view_source(config: Config, manifest: Manifest) -> VideoSource:
    """Opens a source of test views only, for evaluation and prediction: it needs no labels, and plans no rows."""
    nothing = np.empty(0, np.int64)
    return VideoSource(
        manifest=manifest,
        plan=Plan(np.array([-1]), nothing, 0, config.data.labeled_per_step, config.run.seed),  # -1: no video
        clips=(config.primary.clip, config.auxiliary.clip),
        size=config.data.decode_size,
        limits=_decoder_limits(config),
        cache_bytes=_count_cache_bytes(config),
    )


def _decoder_limits(config: Config) -> ProcessLimits | None:
    if not config.data.isolate_decoder:
        return None
    return ProcessLimits(config.data.video_timeout_seconds, round(config.data.decoder_memory_mb * 2**20))


def _count_cache_bytes(config: Config) -> int:
    return round(config.data.decoded_cache_mb * 2**20)


def read_quarantine_records(columns: Columns) -> tuple[dict[str, object], ...]:
    """Reads the quarantine records of decoded rows."""
    return tuple(record for text in columns["quarantined"] for record in json.loads(text))


class Column:
    """A column of the manifest, read without a copy."""

    def __init__(self, values: pa.ChunkedArray, changed: Mapping[int, Any] | None = None) -> None:
        """``changed`` has the values of rows that have others than the manifest says."""
        self.values, self.changed = values, changed or {}

    def __getitem__(self, row: Any) -> Any:
        """Returns the value of a row, NaN for null; for an array of rows the array of their values."""
        if isinstance(row, np.ndarray):
            return np.array([self[int(index)] for index in row.ravel()]).reshape(row.shape)
        value = self.changed[int(row)] if int(row) in self.changed else self.values[int(row)].as_py()
        return np.nan if value is None else value


def open_video_columns(manifest: Manifest) -> dict[str, Column]:
    """Opens the manifest's columns that decoding needs, to be indexed by manifest row; nothing is copied."""
    names = ("start", "end", "frames", "fps", "variable_fps", "duration", "width", "height", "decoder", "label")
    return {name: Column(manifest.table.column(name)) for name in names}


def describe_video(manifest: Manifest, columns: dict[str, Column], row: int) -> Video:
    """Returns what the decoder needs to know about a manifest row's video; ``columns`` are those of ``open_video_columns``."""
    start, end, duration = (columns[name][row] for name in ("start", "end", "duration"))
    return Video(
        location=manifest.locate(row),
        frames=int(columns["frames"][row]),
        fps=float(columns["fps"][row]),
        variable_fps=bool(columns["variable_fps"][row]),
        width=int(columns["width"][row]),
        height=int(columns["height"][row]),
        start=0.0 if np.isnan(start) else float(start),
        end=float(np.fmin(end, duration)),  # the file's, where the part has none or a later one
        decoder=str(columns["decoder"][row]),
    )


def _join_records(texts: Iterable[str]) -> str:
    return json.dumps([record for text in texts for record in json.loads(text)])
