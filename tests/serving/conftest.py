"""A small model with random weights, real clips, and servers that answer by them on a free port of this machine."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config import load_config
from pipeline.methods import build_students
from pipeline.run_folder.contents import Fingerprints
from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.in_process import InProcess
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.model.served_model import ServedModel
from pipeline.serving.requests.fetch_uri import UriRules
from pipeline.serving.requests.limits import Limits
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web.access import Access
from pipeline.serving.web.app import build_app
from pipeline.serving.web.http_server import describe_address, make_server, open_socket
from pipeline.serving.web.service import Service
from tests.run_folders import CLASSES, write_video

CONFIG = """
data: {decode_size: 40}
primary: {network: {depth: 10, width: 8, norm: group}, clip: {frames: 4, fps: 8, size: 32}}
auxiliary: {network: {width: 32, depth: 2, heads: 2, patch: 8, tubelet: 2}, clip: {frames: 4, fps: 16, size: 32}}
evaluation: {clips: 2, crops: 1}
scale: {workers: 0, torch_threads: 1, gpu: false}
"""
LIMITS = Limits(upload_bytes=2 * 2**20, upload_seconds=20.0, video_seconds=20.0, request_seconds=30.0, video_frames=600)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """A model of four classes whose weights are random."""
    return save_random_model(tmp_path_factory.mktemp("served") / "drift", CLASSES)


def save_random_model(folder: Path, classes: tuple[str, ...], seed: int = 0) -> SavedRun:
    """Writes weights drawn at random, and returns the model as commands open one."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    config = load_config(folder / "config.yaml")
    torch.manual_seed(seed)
    students = build_students(config, len(classes)).state_dict()
    weights = folder / "model.safetensors"
    save_file({f"students.{name}": value.contiguous() for name, value in students.items()}, weights)
    return SavedRun(folder, config, classes, Fingerprints("", "", ""), 0, weights, 7, 7)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An H.264 clip of one second."""
    path = tmp_path_factory.mktemp("clip") / "left.mp4"
    write_video(path, "left")
    return path.read_bytes()


@pytest.fixture(scope="session")
def model(saved: SavedRun) -> Iterator[InProcess]:
    """The model, loaded once for all tests of this room."""
    answerer = InProcess(ServedModel(saved, LIMITS))
    yield answerer
    answerer.stop()


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server in a thread."""

    address: str
    service: Service
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 60.0, **headers: str) -> Reply:
        """Sends one request; keyword arguments are headers, with _ for -. An iterable body is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            names = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/predict", kind: str = "application/octet-stream", **headers: str) -> Reply:
        """Uploads a video."""
        return self.ask("POST", path, body, Content_Type=kind, **headers)

    def list_scratch(self) -> list[str]:
        """The uploads that were not removed."""
        return os.listdir(self.service.scratch.folder)


@contextmanager
def run_service(
    answerer: Answerer, scratch: Path, limits: Limits = LIMITS, rules: UriRules | None = None, token: str | None = None
) -> Iterator[Running]:
    """Runs a server until the block ends."""
    scratch.mkdir(parents=True, exist_ok=True)
    service = Service(answerer, limits, Scratch(scratch), rules)
    bound = open_socket("127.0.0.1", 0)
    server = make_server(build_app(service, Access(token)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(describe_address(bound), service, bound.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        bound.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(model: InProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without a token, whose files have at most 2 MiB, 20 s and 600 frames."""
    with run_service(model, tmp_path_factory.mktemp("scratch") / "uploads") as running:
        yield running
