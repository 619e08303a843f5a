"""What the server answers about videos that it can use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.scorer import Scorer
from pipeline.prediction.file_manifest import probe_here
from pipeline.prediction.input_videos import InputVideo
from pipeline.prediction.predict_inputs import choose_scorer, predict_inputs
from pipeline.prediction.timeline import Windows, predict_timelines
from pipeline.processes.isolation import count_cores
from pipeline.saved_models.saved_run import SavedRun, open_file_source
from pipeline.serving.in_process import InProcess
from pipeline.serving.model.score_batches import ScoreBatches
from pipeline.video.probe import ProbeOptions, probe_file
from tests.run_folders import CLASSES
from tests.serving.conftest import Running

BOUNDARY = "0123456789abcdef"


def make_form(content: bytes, name: str = "file", filename: str | None = "clip.mp4") -> tuple[bytes, str]:
    """A form with one part, and its content type."""
    about = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    head = f"--{BOUNDARY}\r\nContent-Disposition: {about}\r\nContent-Type: video/mp4\r\n\r\n".encode()
    return head + content + f"\r\n--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def predict_here(saved: SavedRun, path: Path, windows: Windows | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """The prediction and the timeline of a file as jobs.predict computes them, with PyAV as the decoder."""
    source = open_file_source(saved)

    def probe(locations: Any) -> Any:
        return [probe_file(location, ProbeOptions(decoder="pyav")) for location in locations]

    score, inputs = choose_scorer(source, saved.config, saved.weights, None), [InputVideo("clip", str(path))]
    (prediction,) = predict_inputs(source, saved.config, inputs, score, probe)
    if windows is None:
        return prediction, []
    (rows,) = predict_timelines(source, inputs, windows, saved.config.evaluation.average, score, probe)
    return prediction, rows


@pytest.fixture(scope="module")
def fight(shared_data: Path) -> Path:
    """A real clip of 2 seconds."""
    return shared_data / "fights" / "fight" / "fi001.mp4"


def test_a_real_clip_gets_the_probabilities_that_predict_computes(server: Running, saved: SavedRun, fight: Path) -> None:
    reply = server.post(fight.read_bytes(), "/predict?top=4&window=1s&hop=500ms", "video/mp4")
    assert reply.status == 200, reply.body
    answer = reply.json
    prediction, rows = predict_here(saved, fight, Windows(1.0, 0.5))
    for name in ("primary", "auxiliary"):
        told = {one["name"]: one[name] for one in answer["classes"]}
        np.testing.assert_allclose([told[name] for name in CLASSES], prediction.scores[name], rtol=1e-5)
        assert answer[name] == {"name": max(told, key=lambda one: told[one]), "probability": max(told.values())}
    told = [one["probability"] for one in answer["classes"]]
    np.testing.assert_allclose(told, sorted(prediction.scores["mean"], reverse=True), rtol=1e-5)
    assert answer["agree"] == (answer["primary"]["name"] == answer["auxiliary"]["name"])
    assert [(one["start"], one["end"], one["name"]) for one in answer["timeline"]] == [
        (row["start"], row["end"], row["class"]) for row in rows
    ]
    for one, row in zip(answer["timeline"], rows, strict=True):
        np.testing.assert_allclose(one["confidence"], row["confidence"], rtol=1e-5)
    assert answer["video"] | {"seconds": 0} == {
        "seconds": 0, "frames": 53, "frames_per_second": 25.0, "width": 480, "height": 360, "codec": "h264", "bytes": 152507,
    }  # fmt: skip
    assert (answer["model"]["name"], answer["model"]["step"], answer["note"]) == ("drift", 7, "")
    assert server.list_scratch() == []


def test_a_body_a_chunked_body_and_a_form_are_the_same_video(server: Running, clip: bytes) -> None:
    form, kind = make_form(clip)
    replies = [
        server.post(clip),
        server.post((clip[start : start + 1000] for start in range(0, len(clip), 1000)), kind="video/mp4"),
        server.post(form, kind=kind),
    ]
    assert [reply.status for reply in replies] == [200, 200, 200]
    answers = [reply.json for reply in replies]
    assert answers[0]["classes"] == answers[1]["classes"] == answers[2]["classes"]
    assert len(answers[0]["classes"]) == 4 and answers[0]["timeline"] is None
    np.testing.assert_allclose(sum(one["probability"] for one in answers[0]["classes"]), 1.0, rtol=1e-5)


@pytest.mark.parametrize("top", [1, 3])
def test_top_says_how_many_classes_are_named(server: Running, clip: bytes, top: int) -> None:
    classes = server.post(clip, f"/predict?top={top}").json["classes"]
    assert len(classes) == top
    assert [one["probability"] for one in classes] == sorted((one["probability"] for one in classes), reverse=True)


ODD = {
    "vp9.webm": "vp9", "av1.mp4": "av1", "h264.ts": "h264", "mjpeg.avi": "mjpeg", "mpeg2.mpg": "mpeg2video",
    "h264_vfr.mkv": "h264", "portrait.mp4": "h264", "h264_editlist.mp4": "h264", "wmv_msmpeg4.wmv": "msmpeg4v3",
    "h264.flv": "h264", "h263.3gp": "h263", "hevc_opengop.mp4": "hevc",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_videos_of_many_formats_are_read_as_predict_reads_them(
    server: Running, saved: SavedRun, shared_data: Path, name: str
) -> None:
    path = shared_data / "odd" / name
    reply = server.post(path.read_bytes(), "/predict?top=4")
    assert reply.status == 200 and reply.json["video"]["codec"] == ODD[name], reply.body
    told = {one["name"]: one["probability"] for one in reply.json["classes"]}
    np.testing.assert_allclose([told[one] for one in CLASSES], predict_here(saved, path)[0].scores["mean"], rtol=1e-4)


def test_requests_at_the_same_time_get_the_answers_that_they_get_alone(
    server: Running, model: InProcess, shared_data: Path, clip: bytes
) -> None:
    """Each its own: an answer that went to another request would be seen."""
    clips = [clip, *((shared_data / "odd" / name).read_bytes() for name in ("av1.mp4", "portrait.mp4", "vp9.webm"))]
    alone = [server.post(one).json["classes"] for one in clips]
    assert len({str(one) for one in alone}) == len(clips)
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda number: server.post(clips[number % 4]).json["classes"], range(16)))
    for number, classes in enumerate(together):
        assert [one["name"] for one in classes] == [one["name"] for one in alone[number % 4]]
        np.testing.assert_allclose(
            [one["probability"] for one in classes], [one["probability"] for one in alone[number % 4]], rtol=1e-5
        )
    assert len(model.model._inspectors._idle) <= count_cores()  # processes, which would take gigabytes for many requests


# ------------------------------------------------------------------------------------------------------ batches


def make_block(number: int, clips: int = 2) -> Any:
    return {"reason": np.array([""] * clips), "number": number}, {}


class Recorder:
    """Stands for the networks: each view's score is the number of its block."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()

    def __call__(self, blocks: Any) -> Any:
        self.may_go.wait(10)
        numbers = [columns["number"] for columns, _ in blocks]
        self.batches.append(numbers)
        if 13 in numbers:
            raise UserError("thirteen")
        views = np.repeat(numbers, 6)  # 2 clips x 3 crops, in parts that end within a video
        for part in np.array_split(views, 4):
            yield {"video": np.zeros(len(part), np.int64), "primary": part}


def test_what_waits_is_scored_together_and_every_request_gets_its_own_views() -> None:
    networks, sizes = Recorder(), []
    batches = ScoreBatches(networks, crops=3, most=4, observe=sizes.append)
    first = batches.submit(make_block(0))
    while not batches._waiting.empty():
        pass
    futures = [batches.submit(make_block(number)) for number in range(1, 8)]
    networks.may_go.set()
    for number, future in enumerate([first, *futures]):
        assert future.result(timeout=10)["primary"].tolist() == [number] * 6
    assert networks.batches == [[0], [1, 2, 3, 4], [5, 6, 7]] and sizes == [1, 4, 3]
    batches.stop()


def test_a_video_that_cannot_be_scored_fails_alone() -> None:
    networks = Recorder()
    batches = ScoreBatches(networks, crops=3, most=4)
    first = batches.submit(make_block(0))
    while not batches._waiting.empty():
        pass
    good, bad = batches.submit(make_block(1)), batches.submit(make_block(13))
    networks.may_go.set()
    assert first.result(timeout=10)["primary"].tolist() == [0] * 6
    assert good.result(timeout=10)["primary"].tolist() == [1] * 6
    with pytest.raises(UserError, match="thirteen"):
        bad.result(timeout=10)
    batches.stop()


def test_weights_that_compute_no_numbers_are_a_failure_of_the_server(
    saved: SavedRun, model: InProcess, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.serving.conftest import run_service

    real = Scorer.score_videos

    def score(self: Scorer, blocks: Any) -> Any:
        for part in real(self, blocks):
            yield {**part, "primary": np.full_like(part["primary"], np.nan)}

    batches = ScoreBatches(lambda blocks: score(model.model.scorer, blocks), crops=1, most=1)
    monkeypatch.setattr(model.model, "_batches", batches)
    with run_service(model, tmp_path / "scratch") as running:
        reply = running.post(clip)
        assert (reply.status, reply.json["error"]) == (500, "not_finite") and "not finite" in reply.json["detail"]
    batches.stop()


def test_the_probe_of_the_tests_is_that_of_predict(fight: Path) -> None:
    """With another decoder the numbers would be compared with others than jobs.predict's, but for the last digits."""
    (probe,) = probe_here([str(fight)])
    assert replace(probe, decoder="pyav", stamp=None) == replace(
        probe_file(str(fight), ProbeOptions(decoder="pyav")), stamp=None
    )
