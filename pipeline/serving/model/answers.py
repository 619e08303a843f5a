"""What is asked of the server and what it answers, as the types that the OpenAPI description is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import STUDENTS
from pipeline.prediction.predict_inputs import Prediction
from pipeline.video.probe import Probe


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RequestOptions(_Part):
    """What a request asks for in addition to the probabilities."""

    top: int = 5
    """How many classes to return."""
    window: float | None = None
    """Length in seconds of the windows of a timeline; None: no timeline."""
    hop: float | None = None
    """Seconds from the start of a window to that of the next one."""


class ClassScore(_Part):
    """A class and how probable it is, 0 to 1."""

    name: str
    probability: float = Field(description="by the mean of both networks")
    primary: float
    auxiliary: float


class NetworkChoice(_Part):
    """The most probable class of one network."""

    name: str
    probability: float


class TimelineSegment(_Part):
    """A part of the video in which one class is the most probable by the mean of both networks."""

    start: float = Field(description="seconds of the file")
    end: float
    name: str
    confidence: float = Field(description="mean probability of the class over the segment")


class VideoFacts(_Part):
    """What the file holds."""

    seconds: float
    frames: int
    frames_per_second: float
    width: int
    height: int
    codec: str | None
    bytes: int


class ModelFacts(_Part):
    """Which model answers."""

    name: str
    classes: int
    sha256: str = Field(description="of the file of weights")
    step: int = Field(description="training step of the weights")
    clips: int = Field(description="clips of a video, evenly spaced in time")
    crops: int = Field(description="crops of a clip")
    calibrated: bool = Field(description="whether the probabilities are calibrated by the temperatures of the model folder")


class Timings(_Part):
    """Where the time went, in seconds."""

    receive: float = Field(0.0, description="the upload, or the file behind the URI")
    inspect: float = Field(
        description="probing the file: container, packets and some decoded frames, with the wait for a free thread"
    )
    predict: float = Field(description="decoding and both networks, with waiting for other requests")


class Answer(_Part):
    """The prediction for one video."""

    classes: list[ClassScore] = Field(description="the most probable ones first, by the mean of both networks")
    primary: NetworkChoice
    auxiliary: NetworkChoice
    agree: bool = Field(description="whether both networks find the same class most probable")
    timeline: list[TimelineSegment] | None = Field(description="null unless window was given")
    note: str = Field(description="which parts of the video could not be decoded, or empty")
    video: VideoFacts
    model: ModelFacts
    seconds: Timings


class Problem(_Part):
    """Why a request was not answered with a prediction."""

    error: str = Field(description="the reason in a word")
    detail: str = Field(description="the same in a sentence")


def make_answer(
    prediction: Prediction,
    segments: Sequence[Mapping[str, Any]] | None,
    classes: Sequence[str],
    options: RequestOptions,
    probe: Probe,
    model: ModelFacts,
    seconds: Timings,
) -> Answer:
    """Makes the answer from a prediction with scores, and from the rows of its timeline."""
    scores = prediction.scores
    order = np.argsort(-scores["mean"], kind="stable")[: options.top].tolist()
    best = {name: int(scores[name].argmax()) for name in STUDENTS}
    primary, auxiliary = (
        NetworkChoice(name=classes[best[name]], probability=float(scores[name][best[name]])) for name in STUDENTS
    )
    timeline = None
    if segments is not None:
        timeline = [
            TimelineSegment(start=row["start"], end=row["end"], name=row["class"], confidence=row["confidence"])
            for row in segments
        ]
    return Answer(
        classes=[
            ClassScore(
                name=classes[index],
                probability=float(scores["mean"][index]),
                primary=float(scores["primary"][index]),
                auxiliary=float(scores["auxiliary"][index]),
            )
            for index in order
        ],
        primary=primary,
        auxiliary=auxiliary,
        agree=best["primary"] == best["auxiliary"],
        timeline=timeline,
        note=prediction.reason,
        video=VideoFacts(
            seconds=probe.duration, frames=probe.frames, frames_per_second=probe.fps, width=probe.width, height=probe.height,
            codec=probe.codec, bytes=probe.bytes,
        ),
        model=model,
        seconds=seconds,
    )  # fmt: skip
