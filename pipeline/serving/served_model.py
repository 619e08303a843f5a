"""A model that answers requests in this process: child processes inspect and decode uploads, which are scored in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clips.evaluation_views import decode_videos
from pipeline.clips.source import Columns, VideoSource
from pipeline.evaluation.protocol import compute_clip_moments
from pipeline.evaluation.scorer import Scorer
from pipeline.lifecycle.saved_run import SavedRun, open_file_source
from pipeline.lifecycle.saved_temperatures import read_temperatures
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.prediction.input_videos import InputVideo
from pipeline.prediction.predict_inputs import NOT_FINITE, Prediction, ScoreRows, predict_inputs
from pipeline.prediction.timeline import Windows, place_windows, predict_timelines
from pipeline.processes.isolation import ProcessLimits, count_cores
from pipeline.seeds import Ints
from pipeline.serving.answers import Answer, ModelFacts, Timings, Wanted, make_answer
from pipeline.serving.limits import Limits, Refusal, refuse_too_late
from pipeline.serving.score_batches import ScoreBatches
from pipeline.serving.uploads.inspect_upload import Inspectors, hide_path
from pipeline.video.probe import Probe

DECODE_SHARE = 1 / 3
"""Part of ``request_seconds`` after which a decoder is stopped: a video that fails as a whole is tried clip by clip."""


def describe_model(saved: SavedRun) -> ModelFacts:
    """Describes a model as each answer names it."""
    knobs = saved.config.evaluation
    return ModelFacts(
        name=saved.folder.name, classes=len(saved.classes), sha256=compute_sha256(saved.weights), step=saved.step,
        clips=knobs.clips, crops=knobs.crops, calibrated=read_temperatures(saved).is_calibrated,
    )  # fmt: skip


class ServedModel:
    """Answers from any number of threads. The networks are loaded once, and compute in one thread."""

    def __init__(self, saved: SavedRun, limits: Limits, observe_batch: Callable[[int], None] = lambda videos: None) -> None:
        self.config, self.limits, self.facts = saved.config, limits, describe_model(saved)
        seconds, memory = limits.request_seconds * DECODE_SHARE, limits.decoder_bytes
        # half of the memory may be taken for a moment before the decoder's process is replaced after its video
        child = ProcessLimits(seconds, memory, address_space_bytes=2 * memory)
        self.source = replace(open_file_source(saved), limits=child)
        if saved.config.scale.torch_threads:
            torch.set_num_threads(saved.config.scale.torch_threads)
        self.temperatures = read_temperatures(saved).values
        self.scorer = Scorer(saved.config.model_dump(mode="json"), len(saved.classes), str(saved.weights))
        self._moments = compute_clip_moments(saved.config.evaluation.clips)
        self._inspectors = Inspectors(child)
        self._decoders = ThreadPoolExecutor(count_cores(), thread_name_prefix="decode")
        most = max(1, 2 * self.scorer.batch // max(1, len(self._moments) * saved.config.evaluation.crops))
        self._batches = ScoreBatches(self.scorer.score_videos, saved.config.evaluation.crops, most, observe_batch)

    def stop(self) -> None:
        """Ends its threads and processes."""
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._batches.stop()
        self._inspectors.stop()

    def answer(self, path: Path, wanted: Wanted) -> Answer:
        """Predicts an uploaded file. Raises Refusal if it is no usable video, beyond the limits, or takes too long."""
        begun = time.monotonic()
        deadline = begun + self.limits.request_seconds
        # by the threads that decode, so that there are no more child processes than twice the cores, however many ask
        probe: Probe = self._wait(self._decoders.submit(self._inspectors.inspect, path, self.limits), deadline)
        windows = self._choose_windows(wanted, probe)
        inspected = time.monotonic()
        video, classes = InputVideo("the upload", str(path)), self.source.manifest.classes
        score = self._make_scorer(deadline)
        (prediction,) = predict_inputs(self.source, self.config, [video], score, lambda locations: [probe], self.temperatures)
        if not prediction.is_ok:
            raise _refuse(prediction, path)
        segments = None
        if windows is not None:
            average = self.config.evaluation.average
            (rows,) = predict_timelines(
                self.source, [video], windows, average, score, lambda locations: [probe], self.temperatures
            )
            segments = [row for row in rows if row["class"]]
        seconds = Timings(inspect=inspected - begun, predict=time.monotonic() - inspected)
        prediction = replace(prediction, reason=hide_path(prediction.reason, path))
        return make_answer(prediction, segments, classes, wanted, probe, self.facts, seconds)

    def _choose_windows(self, wanted: Wanted, probe: Probe) -> Windows | None:
        if wanted.window is None:
            return None
        hop = wanted.window / 2 if wanted.hop is None else wanted.hop
        if not 0 < hop <= wanted.window < float("inf"):
            raise Refusal(422, "window", "window and hop must be above 0 seconds, and hop at most window")
        count = max(0.0, probe.duration - wanted.window) / hop  # before they are listed: there may be billions
        windows = Windows(wanted.window, hop)
        if count > self.limits.windows or len(place_windows(0.0, probe.duration, windows)) > self.limits.windows:
            text = f"the timeline would have more than {self.limits.windows} windows: choose a longer hop"
            raise Refusal(422, "too_many_windows", text)
        return windows

    def _make_scorer(self, deadline: float) -> ScoreRows:
        """Makes what scores the rows of a request until ``deadline``, in the time of ``time.monotonic``."""

        def decode_and_submit(source: VideoSource, row: int) -> Future[Columns]:
            if time.monotonic() > deadline:
                raise refuse_too_late(self.limits)
            return self._batches.submit(self.scorer.prepare_block(decode_videos(source, np.array([row]), self._moments)))

        def score(source: VideoSource, rows: Ints) -> Iterator[Columns]:
            pending: deque[Future[Future[Columns]]] = deque()
            remaining = iter(rows.tolist())
            try:
                while True:
                    # a few ahead: a long timeline must not keep other requests' videos from being decoded
                    while len(pending) <= count_cores() and (row := next(remaining, None)) is not None:
                        pending.append(self._decoders.submit(decode_and_submit, source, row))
                    if not pending:
                        return
                    yield self._wait(self._wait(pending.popleft(), deadline), deadline)
            finally:
                for future in pending:
                    future.cancel()

        return score

    def _wait(self, future: Future[Any], deadline: float) -> Any:
        try:
            return future.result(timeout=max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            future.cancel()
            raise refuse_too_late(self.limits) from None


def _refuse(prediction: Prediction, path: Path) -> Refusal:
    if prediction.status == NOT_FINITE:
        return Refusal(500, NOT_FINITE, prediction.reason)
    if "no result after" in prediction.reason:
        return Refusal(422, "too_costly", hide_path(f"the video takes too long to decode ({prediction.reason})", path))
    return Refusal(422, prediction.status, hide_path(prediction.reason, path))
