"""Clips travel one step ahead on a stream of their own. CUDA's part is played: it notes what was asked of it, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pipeline.clips.batch import Batch
from pipeline.stream.upload_ahead import UploadAhead
from tests.methods.traces import batch_of


def _batches(number: int, notes: list[str]) -> Iterator[Batch]:
    for step in range(number):
        notes.append(f"decoded {step}")
        yield batch_of(step, rows=1)


class Stream:
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes, self.events = name, notes, 0

    def record_event(self) -> str:
        self.events += 1
        self.notes.append(f"{self.name} sends {self.events}")
        return f"event {self.events}"

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, with a copy to "cuda" noted by the stream that it is made on."""
    noted: list[str] = []
    streams = [Stream("main", noted)]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        assert non_blocking and device.type == "cuda" and streams[-1].name == "side"
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", noted))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: noted.append(f"kept for {stream.name}"))
    return noted


def test_the_next_batch_is_sent_while_a_step_is_computed(notes: list[str]) -> None:
    uploads = UploadAhead(_batches(2, notes), torch.device("cuda"))
    kept = ["kept for main"] * 2
    for step in range(2):
        batch = uploads.take()
        assert torch.equal(batch.primary, batch_of(step, rows=1).primary)
        notes.append(f"step {step}")
        uploads.start_next()
    assert notes == [
        "decoded 0", "side sends 1", "main waits for event 1", *kept, "step 0", "decoded 1", "side sends 2",
        "main waits for event 2", *kept, "step 1",
    ]  # fmt: skip
    with pytest.raises(StopIteration):
        uploads.take()


def test_a_batch_is_sent_when_it_is_asked_for_if_nobody_began_before(notes: list[str]) -> None:
    uploads = UploadAhead(_batches(3, notes), torch.device("cuda"))
    rows = [uploads.take().rows.tolist() for _ in range(3)]
    assert rows == [[0], [1], [2]]


def test_on_a_cpu_a_batch_is_decoded_when_it_is_asked_for() -> None:
    """Decoders may use all cores while it is waited for: asking for it during a step would slow the step down."""
    notes: list[str] = []
    uploads = UploadAhead(_batches(2, notes), torch.device("cpu"))
    first: Any = uploads.take()
    uploads.start_next()
    assert notes == ["decoded 0"]
    assert first.primary is not None and uploads.take().rows.tolist() == [1]
