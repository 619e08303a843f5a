"""How many requests there are at a time, how long they wait, and what is told about it."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.errors import UserError
from pipeline.serving.in_process import InProcess
from pipeline.serving.model.answers import Answer, RequestOptions
from pipeline.serving.requests.limits import Limits
from pipeline.serving.web import service
from pipeline.serving.web.http_server import open_socket
from tests.serving.conftest import LIMITS, Running, run_service


class Slow(InProcess):
    """Answers when it is told to."""

    def __init__(self, model: InProcess) -> None:
        super().__init__(model.model)
        self.may_go, self.begun = threading.Event(), 0
        self.paths: list[Path] = []

    async def answer(self, path: Path, options: RequestOptions) -> Answer:
        import asyncio

        self.begun += 1
        self.paths.append(path)
        await asyncio.to_thread(self.may_go.wait, 20)
        return await super().answer(path, options)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_metric(running: Running, name: str) -> float:
    text = running.ask("GET", "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_requests_beyond_the_queue_are_told_to_come_again_and_the_others_are_answered(
    model: InProcess, clip: bytes, tmp_path: Path
) -> None:
    slow = Slow(model)
    with (
        run_service(slow, tmp_path / "uploads", replace(LIMITS, waiting=2)) as running,
        ThreadPoolExecutor(2) as threads,
    ):
        first = [threads.submit(running.post, clip) for _ in range(2)]
        wait_until(lambda: slow.begun == 2)
        assert read_metric(running, "actnetformer_server_waiting") == 2
        third = running.post(clip)
        assert (third.status, third.json["error"]) == (503, "busy") and int(third.headers["retry-after"]) >= 1
        assert running.ask("GET", "/livez").status == 200
        slow.may_go.set()
        assert [future.result().status for future in first] == [200, 200]
        assert running.post(clip).status == 200
        assert read_metric(running, "actnetformer_server_waiting") == 0
        assert running.list_scratch() == []
    slow._threads.shutdown()


def test_an_answer_that_is_too_late_is_given_up_and_its_file_is_removed_when_it_comes(
    model: InProcess, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its place in the queue until then, because it still costs what it costs."""
    monkeypatch.setattr(service, "SPARE_SECONDS", 0.0)
    slow = Slow(model)
    with run_service(slow, tmp_path / "uploads", replace(LIMITS, request_seconds=0.3, waiting=1)) as running:
        late = running.post(clip)
        assert (late.status, late.json["error"]) == (504, "too_late")
        assert slow.paths[0].exists() and running.post(clip).status == 503
        slow.may_go.set()
        wait_until(lambda: running.list_scratch() == [])
    slow._threads.shutdown()


def test_a_stopped_server_answers_what_it_has_begun(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    slow = Slow(model)
    with ThreadPoolExecutor(1) as threads:
        with run_service(slow, tmp_path / "uploads") as running:
            future = threads.submit(running.post, clip)
            wait_until(lambda: slow.begun == 1)
            threading.Timer(0.3, slow.may_go.set).start()
        assert future.result().status == 200
    slow._threads.shutdown()


def test_a_bug_is_told_without_its_traceback(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    class Broken(InProcess):
        async def answer(self, path: Path, options: RequestOptions) -> Answer:
            raise KeyError(f"secret {path}")

    broken = Broken(model.model)
    with run_service(broken, tmp_path / "uploads") as running:
        reply = running.post(clip)
        assert reply.status == 500 and reply.json == {"error": "internal", "detail": "the server failed; its log says why"}
        assert running.list_scratch() == []
        assert read_metric(running, 'actnetformer_server_refusals_total{reason="internal"}') == 1
    broken._threads.shutdown()


def test_a_model_that_is_not_there_is_not_ready(model: InProcess, tmp_path: Path) -> None:
    class Away(InProcess):
        async def is_ready(self) -> bool:
            return False

    away = Away(model.model)
    with run_service(away, tmp_path / "uploads") as running:
        reply = running.ask("GET", "/readyz")
        assert (reply.status, reply.json["error"]) == (503, "not_ready")
        assert running.ask("GET", "/livez").status == 200
    away._threads.shutdown()


def test_health_and_metrics(server: Running, clip: bytes) -> None:
    ready = server.ask("GET", "/readyz")
    assert ready.status == 200 and ready.json["model"]["name"] == "drift" and len(ready.json["model"]["sha256"]) == 64
    before = read_metric(server, 'actnetformer_server_requests_total{path="/predict",status="200"}')
    refused = read_metric(server, 'actnetformer_server_refusals_total{reason="not_a_video"}')
    server.post(clip)
    server.post(b"no video")
    assert read_metric(server, 'actnetformer_server_requests_total{path="/predict",status="200"}') == before + 1
    assert read_metric(server, 'actnetformer_server_refusals_total{reason="not_a_video"}') == refused + 1
    for part in ("receive", "inspect", "predict"):
        assert read_metric(server, f'actnetformer_server_seconds_count{{part="{part}"}}') > 0
    text = server.ask("GET", "/metrics").body.decode()
    assert re.search(r"^actnetformer_server_process_resident_memory_bytes \d", text, re.MULTILINE)


def test_paths_that_do_not_exist_make_no_new_metrics(server: Running) -> None:
    for number in range(5):
        server.ask("GET", f"/nothing/{number}")
    assert "nothing" not in server.ask("GET", "/metrics").body.decode()


def test_answers_are_as_the_openapi_description_says(server: Running, clip: bytes) -> None:
    description = server.ask("GET", "/openapi.json").json
    assert description["openapi"].startswith("3.")
    operation = description["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "video/*", "application/octet-stream", "multipart/form-data", "application/json",
    }  # fmt: skip
    assert {"400", "401", "403", "408", "413", "415", "422", "503", "504"} <= set(operation["responses"])
    for reply in (server.post(clip, "/predict?window=400ms"), server.post(b"no video")):
        schema = operation["responses"][str(reply.status)]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": description["components"]}).validate(reply.json)


def test_the_page_of_the_interface_names_every_address_and_loads_nothing_from_elsewhere(server: Running) -> None:
    reply = server.ask("GET", "/docs")
    page = reply.body.decode()
    for path in server.ask("GET", "/openapi.json").json["paths"]:
        assert f"{path}</code>" in page
    assert f"{server.address}/predict" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page) and "<script" not in page
    assert "default-src 'none'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/predict", "/metrics", "/nothing"])
def test_no_response_is_stored_or_sniffed(server: Running, path: str) -> None:
    headers = server.ask("GET", path).headers
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_a_port_that_is_in_use_is_a_mistake(server: Running) -> None:
    with pytest.raises(UserError, match=r"--port \d+ cannot be used: another program listens there"):
        open_socket("127.0.0.1", server.port)


@pytest.mark.parametrize(
    ("host", "port", "shown"),
    [("127.0.0.1", 70000, "between 0 and 65535"), ("127.0.0.1", -1, "between 0 and 65535"),
     ("203.0.113.7", 0, "this is not an address of this machine"),
     ("no.such.host.invalid", 0, "no address of this machine")],
)  # fmt: skip
def test_addresses_that_cannot_be_listened_on_are_mistakes(host: str, port: int, shown: str) -> None:
    with pytest.raises(UserError, match=shown):
        open_socket(host, port)


@pytest.mark.parametrize("name", list(vars(Limits())))
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_numbers_above_0(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        Limits(**{name: value})


def test_an_answer_is_plain_json(server: Running, clip: bytes) -> None:
    json.dumps(server.post(clip).json, allow_nan=False)
