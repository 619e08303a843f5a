"""Requests that are too late cost nothing any more, and decoded frames have bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.clips import isolated_decode
from pipeline.processes.isolation import count_cores
from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.model import served_model
from pipeline.serving.model.answers import RequestOptions
from pipeline.serving.model.decoded_memory import DecodedMemory
from pipeline.serving.model.served_model import ServedModel
from pipeline.serving.requests.limits import Limits, Refusal
from tests.serving import misbehaving
from tests.serving.conftest import LIMITS


@pytest.fixture
def upload(clip: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(clip)
    return path


@contextmanager
def open_model(saved: SavedRun, limits: Limits, upload: Path) -> Iterator[ServedModel]:
    """A model whose processes have started, which takes seconds on a busy machine."""
    model = ServedModel(saved, limits)
    if limits.decoded_bytes > 10_000:
        model.answer(upload, RequestOptions(), time.monotonic() + 60)
    try:
        yield model
    finally:
        model.stop()


@pytest.fixture
def patient(saved: SavedRun, upload: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    """A model whose decoders have ten times the time of a request, which is 4 s."""
    monkeypatch.setattr(served_model, "DECODE_SHARE", 10.0)
    with open_model(saved, replace(LIMITS, request_seconds=4.0), upload) as model:
        yield model


def list_children(needle: bytes) -> list[int]:
    found = []
    for folder in Path("/proc/self/task").iterdir():
        for child in (folder / "children").read_text(encoding="ascii").split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and needle in command.read_bytes():
                found.append(int(child))
    return found


def refuse(model: ServedModel, path: Path, options: RequestOptions | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        model.answer(path, options or RequestOptions())
    return caught.value


def test_a_decoder_that_hangs_is_killed_when_the_request_is_given_up(
    patient: ServedModel, upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    with monkeypatch.context() as hanging, ThreadPoolExecutor(count_cores()) as threads:
        hanging.setattr(isolated_decode, "decode_moments", misbehaving.hang_decoding)
        refusals = list(threads.map(lambda _: refuse(patient, upload), range(count_cores())))
    assert {(one.status, one.code) for one in refusals} == {(504, "too_late")} and time.monotonic() - begun < 8
    begun = time.monotonic()  # every decoder was busy
    assert patient.source.limits is not None
    decoder = isolated_decode.get_isolated_decoder(patient.source.limits, patient.source.cache_bytes)
    while len(decoder._idle) < count_cores() or any(child._process for child in decoder._idle):
        assert time.monotonic() - begun < 2
        time.sleep(0.05)
    assert len(patient.answer(upload, RequestOptions(), time.monotonic() + 60).classes) == 4
    assert patient._memory.reserve(LIMITS.decoded_bytes, 5.0)  # nothing of it is held


def test_an_inspection_that_hangs_is_killed_too(patient: ServedModel, upload: Path) -> None:
    patient._inspectors.stop()
    patient._inspectors.function = misbehaving.hang
    assert refuse(patient, upload).status == 504
    begun = time.monotonic()
    while list_children(b"tests.serving.misbehaving:hang"):
        assert time.monotonic() - begun < 2
        time.sleep(0.05)


def test_requests_wait_for_the_memory_of_decoded_frames(saved: SavedRun, upload: Path) -> None:
    """There is room for one video, and eight are asked about, each with a timeline."""
    limits, decoded = replace(LIMITS, request_seconds=100.0), list[int]()
    with open_model(saved, limits, upload) as model:
        size = model._check_decoded_size(model._inspectors.inspect(upload, limits))
        submit = model._batches.submit

        def note(block: Any, drop: Any) -> Any:
            decoded.append(block[0]["pixels"].nbytes)
            return submit(block, drop)

        model._batches.submit = note  # type: ignore[method-assign]
        model.answer(upload, RequestOptions())
    assert 0 < decoded[0] <= size
    with open_model(saved, replace(limits, decoded_bytes=size), upload) as model:
        peak = watch(model._memory)
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(partial(model.answer, upload), [RequestOptions(window=0.4)] * 8))
        assert all(len(answer.classes) == 4 and answer.timeline for answer in answers)
        assert peak() == size and model._memory.reserve(size, 5.0)  # all of it was given back


def watch(memory: DecodedMemory) -> Any:
    """Returns what tells the most bytes that were in use."""
    most, reserve = [0], memory.reserve

    def note(size: int, seconds: float) -> bool:
        done = reserve(size, seconds)
        most[0] = max(most[0], memory.used)
        return done

    memory.reserve = note  # type: ignore[method-assign]
    return lambda: most[0]


def test_a_request_that_gets_no_memory_in_time_is_told_to_come_again(saved: SavedRun, upload: Path) -> None:
    with open_model(saved, replace(LIMITS, request_seconds=3.0), upload) as model:
        assert model._memory.reserve(LIMITS.decoded_bytes, 5.0)
        refusal = refuse(model, upload)
        assert (refusal.status, refusal.code) == (503, "busy") and refusal.retry_after > 0
        model._memory.release(LIMITS.decoded_bytes)
        assert model.answer(upload, RequestOptions(), time.monotonic() + 60).classes


def test_a_video_that_never_has_room_is_refused(saved: SavedRun, upload: Path) -> None:
    with open_model(saved, replace(LIMITS, decoded_bytes=10_000), upload) as model:
        refusal = refuse(model, upload)
        assert (refusal.status, refusal.code) == (422, "too_costly") and "MiB when decoded" in refusal.text


def test_memory_is_given_in_the_order_of_waiting() -> None:
    memory, order = DecodedMemory(10), list[str]()
    assert memory.reserve(6, 0.0) and not memory.reserve(5, 0.0)

    def wait(name: str, size: int) -> None:
        assert memory.reserve(size, 20.0)
        order.append(name)

    large = threading.Thread(target=wait, args=("large", 10))
    large.start()
    while not memory._line:
        time.sleep(0.01)
    small = threading.Thread(target=wait, args=("small", 1))  # for which there would be room
    small.start()
    time.sleep(0.1)
    assert order == [] and not memory.reserve(1, 0.0)
    memory.release(6)
    large.join(timeout=20)
    assert order == ["large"]
    memory.release(10)
    small.join(timeout=20)
    assert order == ["large", "small"] and memory.used == 1
