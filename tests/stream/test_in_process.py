"""Threads of this process decode: all cores while the training waits, fewer while it computes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.stream.batches import to_batch
from pipeline.stream.in_process import Decoders, load_batches


def test_as_many_threads_decode_as_are_allowed() -> None:
    """All while the training waits, fewer while it computes; what waits for its turn gets it."""
    working, most = 0, 0
    lock = threading.Lock()

    def job(_: int) -> None:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        time.sleep(0.02)
        with lock:
            working -= 1

    with Decoders(3) as decoders:
        decoders.allow(1)
        list(decoders.map(job, range(6)))
        assert most == 1
        decoders.allow(3)
        list(decoders.map(job, range(9)))
        assert most == 3


@pytest.mark.parametrize(("device", "cores", "left"), [("cpu", 4, 1), ("cuda", 4, 3), ("cuda", 16, 14), ("cuda", 1, 1)])
def test_decoding_leaves_cores_to_the_training_while_it_computes(
    device: str, cores: int, left: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To torch's threads on a CPU; to the process that keeps a GPU at work as many as a worker with a GPU reserves."""
    monkeypatch.setattr("pipeline.stream.in_process.choose_device", lambda _: torch.device(device))
    monkeypatch.setattr("pipeline.stream.in_process.count_cores", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    pinned: list[bool] = []
    monkeypatch.setattr("pipeline.stream.in_process.to_batch", lambda columns, pin: (pinned.append(pin), to_batch(columns))[1])
    allowed: list[int] = []
    monkeypatch.setattr(Decoders, "allow", lambda self, number: allowed.append(number))
    config = load_config(tiny / "tiny.yaml", ["train.steps=2"])
    for _ in load_batches(open_source(config)[0], config, 0):
        allowed.append(0)
    assert allowed == [left, 0, cores, left, 0, cores]
    assert pinned == [device == "cuda"] * 2  # copies from other memory would be waited for
