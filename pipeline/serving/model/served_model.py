"""A model that answers requests in this process: child processes inspect and decode uploads, which are scored in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clips.decode import compute_scaled_size
from pipeline.clips.source import Columns, VideoSource
from pipeline.clips.whole_videos import decode_videos
from pipeline.errors import UserError
from pipeline.evaluation.protocol import compute_clip_moments
from pipeline.evaluation.scorer import Scorer
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.prediction.input_videos import InputVideo
from pipeline.prediction.predict_inputs import NOT_FINITE, Prediction, ScoreRows, predict_inputs
from pipeline.prediction.timeline import Windows, place_windows, predict_timelines
from pipeline.processes.isolation import ProcessLimits, count_cores, end_calls_at
from pipeline.saved_models.saved_run import SavedRun, open_file_source
from pipeline.saved_models.saved_temperatures import read_temperatures
from pipeline.seeds import Ints
from pipeline.serving.model.answers import Answer, ModelFacts, RequestOptions, Timings, make_answer
from pipeline.serving.model.decoded_memory import DecodedMemory
from pipeline.serving.model.score_batches import ScoreBatches
from pipeline.serving.requests.inspect_upload import Inspectors, hide_path
from pipeline.serving.requests.limits import MEBIBYTE, Limits, Refusal, make_busy_refusal, make_too_late_refusal
from pipeline.video.probe import Probe

DECODE_SHARE = 1 / 3
"""Part of ``request_seconds`` after which a decoder is stopped: there is time left to try a failed video clip by clip."""


@dataclass(frozen=True)
class ModelIdentity:
    """What a model is when the server is started. A copy that is loaded later, after its folder changed, must be the same."""

    facts: ModelFacts
    temperatures: Mapping[str, float]
    """The temperatures that calibrate its probabilities, as ``read_temperatures`` returns them."""


def identify_model(saved: SavedRun) -> ModelIdentity:
    """Reads what a model is."""
    knobs, temperatures = saved.config.evaluation, read_temperatures(saved)
    facts = ModelFacts(
        name=saved.folder.name, classes=len(saved.classes), sha256=compute_sha256(saved.weights), step=saved.step,
        clips=knobs.clips, crops=knobs.crops, calibrated=temperatures.is_calibrated,
    )  # fmt: skip
    return ModelIdentity(facts, temperatures.values)


def _load_scorer(saved: SavedRun, identity: ModelIdentity) -> Scorer:
    """Loads the networks. Raises UserError if the file of weights is not the one of ``identity``."""
    try:
        scorer = Scorer(saved.config.model_dump(mode="json"), len(saved.classes), str(saved.weights))
        found = compute_sha256(saved.weights)  # afterward: of the content that was loaded
    except OSError as error:
        raise UserError(f"{saved.weights} cannot be read: {error.strerror or error}") from None
    if found != identity.facts.sha256:
        raise UserError(f"{saved.weights} was changed after the server was started: its SHA-256 is {found[:12]}..., no longer "
                        f"{identity.facts.sha256[:12]}...; put the earlier file back, or start the server again")  # fmt: skip
    return scorer


class ServedModel:
    """Answers from any number of threads. The networks are loaded once, and compute in one thread."""

    def __init__(
        self,
        saved: SavedRun,
        limits: Limits,
        observe_batch: Callable[[int], None] = lambda videos: None,
        identity: ModelIdentity | None = None,
    ) -> None:
        """``identity`` is what the model must be, if another process has read that. Raises UserError if it is not."""
        identity = identify_model(saved) if identity is None else identity
        self.config, self.limits, self.facts = saved.config, limits, identity.facts
        seconds, memory = limits.request_seconds * DECODE_SHARE, limits.decoder_bytes
        # a decoder's process above its limit is replaced after its video; during the video it may use twice that
        child = ProcessLimits(seconds, memory, address_space_bytes=2 * memory)
        self.source = replace(open_file_source(saved), limits=child)
        if saved.config.scale.torch_threads:
            torch.set_num_threads(saved.config.scale.torch_threads)
        self.temperatures = identity.temperatures
        self.scorer = _load_scorer(saved, identity)
        self._moments = compute_clip_moments(saved.config.evaluation.clips)
        self._inspectors = Inspectors(child)
        self._memory = DecodedMemory(limits.decoded_bytes)
        self._decoders = ThreadPoolExecutor(count_cores(), thread_name_prefix="decode")
        most = max(1, 2 * self.scorer.batch // max(1, len(self._moments) * saved.config.evaluation.crops))
        self._batches = ScoreBatches(self.scorer.score_videos, saved.config.evaluation.crops, most, observe_batch)

    def stop(self) -> None:
        """Ends its threads and processes."""
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._batches.stop()
        self._inspectors.stop()

    def answer(self, path: Path, options: RequestOptions, deadline: float | None = None) -> Answer:
        """Predicts an uploaded file until ``deadline``, in the time of ``time.monotonic``; None: for ``request_seconds``.

        Raises Refusal if it is not a usable video, beyond the limits, or takes too long. Nothing is computed after the
        deadline: processes that still inspect or decode the file are killed.
        """
        begun = time.monotonic()
        deadline = begun + self.limits.request_seconds if deadline is None else deadline
        # in the threads that decode, which limits child processes to two for each core: one that inspects, one that decodes
        probe: Probe = self._wait(self._decoders.submit(self._inspect, path, deadline), deadline)
        windows = self._choose_windows(options, probe)
        inspected = time.monotonic()
        video, classes = InputVideo("the upload", str(path)), self.source.manifest.classes
        score = self._make_score_function(self._check_decoded_size(probe), deadline)
        (prediction,) = predict_inputs(self.source, self.config, [video], score, lambda locations: [probe], self.temperatures)
        if not prediction.is_ok:
            raise _make_refusal(prediction, path)
        segments = None
        if windows is not None:
            average = self.config.evaluation.average
            (rows,) = predict_timelines(
                self.source, [video], windows, average, score, lambda locations: [probe], self.temperatures
            )
            segments = [row for row in rows if row["class"]]
        seconds = Timings(inspect=inspected - begun, predict=time.monotonic() - inspected)
        prediction = replace(prediction, reason=hide_path(prediction.reason, path))
        return make_answer(prediction, segments, classes, options, probe, self.facts, seconds)

    def _choose_windows(self, options: RequestOptions, probe: Probe) -> Windows | None:
        if options.window is None:
            return None
        hop = options.window / 2 if options.hop is None else options.hop
        if not 0 < hop <= options.window < float("inf"):
            raise Refusal(422, "window", "window and hop must be above 0 seconds, and hop at most window")
        count = max(0.0, probe.duration - options.window) / hop  # before they are listed: there may be billions
        windows = Windows(options.window, hop)
        if count > self.limits.windows or len(place_windows(0.0, probe.duration, windows)) > self.limits.windows:
            text = f"the timeline would have more than {self.limits.windows} windows: choose a longer hop"
            raise Refusal(422, "too_many_windows", text)
        return windows

    def _inspect(self, path: Path, deadline: float) -> Probe:
        with self._end_at(deadline):
            return self._inspectors.inspect(path, self.limits)

    def _check_decoded_size(self, probe: Probe) -> int:
        """Computes how many bytes the clips of a video have at most when they are decoded; of a window as well. Raises Refusal
        if there is never room for so many."""
        width, height = compute_scaled_size(probe.width, probe.height, self.source.size)
        frames = min(probe.frames, len(self._moments) * sum(clip.frames for clip in self.source.clips))
        size = frames * width * height * 3
        if size > self.limits.decoded_bytes:
            text = f"{frames} frames of the video are needed, {size / MEBIBYTE:.0f} MiB when decoded; up to "
            raise Refusal(422, "too_costly", f"{text}{self.limits.decoded_bytes / MEBIBYTE:.0f} MiB are accepted")
        return size

    def _make_score_function(self, size: int, deadline: float) -> ScoreRows:
        """Makes what scores the rows of a request until ``deadline``; each of them has ``size`` bytes when it is decoded."""

        def decode_and_submit(source: VideoSource, row: int) -> Future[Columns]:
            with ExitStack() as undo:
                undo.callback(self._memory.release, size)
                with self._end_at(deadline):
                    columns = decode_videos(source, np.array([row]), self._moments)
                block = self.scorer.prepare_block(columns)
                undo.pop_all()  # from here on whoever scores it gives the memory back
            return self._batches.submit(block, lambda: self._memory.release(size))

        def start(source: VideoSource, row: int) -> Future[Future[Columns]]:
            decoding = self._decoders.submit(decode_and_submit, source, row)
            decoding.add_done_callback(lambda done: self._memory.release(size) if done.cancelled() else None)
            return decoding

        def score(source: VideoSource, rows: Ints) -> Iterator[Columns]:
            pending: deque[Future[Future[Columns]]] = deque()
            waiting = deque(rows.tolist())
            try:
                while waiting or pending:
                    # a few ahead: a long timeline must not keep other requests' videos from being decoded. Only for the first
                    # one memory is waited for: who has some and waits for more could wait for another one that does so, too
                    while waiting and len(pending) <= count_cores():
                        if not self._memory.reserve(size, 0.0 if pending else deadline - time.monotonic()):
                            break
                        pending.append(start(source, waiting.popleft()))
                    if not pending:
                        raise make_busy_refusal(self.limits.request_seconds)
                    yield self._wait(self._wait(pending[0], deadline), deadline)
                    pending.popleft()
            finally:
                for decoding in pending:
                    _abandon(decoding)

        return score

    @contextmanager
    def _end_at(self, deadline: float) -> Iterator[None]:
        """Raises Refusal if it is too late, also after the block, whose child processes are then killed."""
        if time.monotonic() >= deadline:
            raise make_too_late_refusal(self.limits)
        try:
            with end_calls_at(deadline):
                yield
        finally:
            if time.monotonic() >= deadline:
                raise make_too_late_refusal(self.limits)

    def _wait(self, future: Future[Any], deadline: float) -> Any:
        try:
            return future.result(timeout=max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            future.cancel()
            raise make_too_late_refusal(self.limits) from None


def _abandon(decoding: Future[Future[Columns]]) -> None:
    """Cancels a video that is being decoded or scored, as far as that has not begun."""

    def abandon_scoring(decoded: Future[Future[Columns]]) -> None:
        if not decoded.cancelled() and decoded.exception() is None:
            decoded.result().cancel()

    decoding.cancel()
    decoding.add_done_callback(abandon_scoring)


def _make_refusal(prediction: Prediction, path: Path) -> Refusal:
    if prediction.status == NOT_FINITE:
        return Refusal(500, NOT_FINITE, prediction.reason)
    if "no result after" in prediction.reason:
        return Refusal(422, "too_costly", hide_path(f"the video takes too long to decode ({prediction.reason})", path))
    return Refusal(422, prediction.status, hide_path(prediction.reason, path))
