"""What the web server does with replicas that are lost, without a cluster: a handle of the test stands for them."""

from __future__ import annotations

import asyncio
import http.client
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.in_process import InProcess
from pipeline.serving.model.answers import RequestOptions
from pipeline.serving.model.served_model import identify_model
from pipeline.serving.on_ray import replicas
from pipeline.serving.on_ray.web_server import WebServer
from pipeline.serving.requests.fetch_uri import UriRules
from pipeline.serving.requests.limits import Limits, Refusal
from pipeline.serving.web.access import Access
from pipeline.serving.web.app import ServiceBuilder
from tests.serving.conftest import LIMITS, run_service


class Handle:
    """Raises these errors, one for each request, and then answers by a model of this process."""

    def __init__(self, model: InProcess, folder: Path, errors: list[Exception]) -> None:
        self.model, self.path, self.errors, self.asked = model, folder / "sent", errors, 0
        self.answer = SimpleNamespace(remote=lambda *words: asyncio.ensure_future(self._answer(*words)))

    async def _answer(self, content: bytes, options: RequestOptions, seconds: float) -> Any:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        self.path.write_bytes(content)
        try:
            return await self.model.answer(self.path, options)
        except Refusal as refusal:
            return refusal


def send_to(handle: Any, saved: SavedRun, limits: Limits = LIMITS) -> replicas.OnRay:
    return replicas.OnRay(handle, "app", identify_model(saved), saved.classes, limits)


UNAVAILABLE = ray.exceptions.ActorUnavailableError("gone", b"0" * 16)
LOST = [ray.exceptions.RayActorError(), ray.exceptions.ActorDiedError(), UNAVAILABLE]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_request_whose_replica_is_lost_goes_to_another_one(
    saved: SavedRun, model: InProcess, clip: bytes, tmp_path: Path, error: Exception
) -> None:
    handle = Handle(model, tmp_path, [error])
    with run_service(send_to(handle, saved), tmp_path / "uploads") as running:
        assert running.post(clip).status == 200 and handle.asked == 2
        refused = running.post(b"no video")
        assert (refused.status, refused.json["error"], handle.asked) == (415, "not_a_video", 3)


def test_a_request_that_loses_every_replica_is_told_to_come_again(
    saved: SavedRun, model: InProcess, clip: bytes, tmp_path: Path
) -> None:
    handle = Handle(model, tmp_path, [ray.exceptions.RayActorError() for _ in range(5)])
    with run_service(send_to(handle, saved), tmp_path / "uploads") as running:
        reply = running.post(clip)
        assert (reply.status, reply.json["error"], reply.headers["retry-after"]) == (503, "replica_lost", "5")
        assert handle.asked == replicas.ATTEMPTS and running.list_scratch() == []


def test_an_error_of_the_model_is_not_sent_to_all_replicas(
    saved: SavedRun, model: InProcess, clip: bytes, tmp_path: Path
) -> None:
    handle = Handle(model, tmp_path, [KeyError("a bug")])
    with run_service(send_to(handle, saved), tmp_path / "uploads") as running:
        assert running.post(clip).status == 500 and handle.asked == 1


@pytest.mark.parametrize(
    ("states", "count"), [({"RUNNING": 2}, 2), ({"STARTING": 2}, 0), ({"RUNNING": 1, "STOPPING": 1}, 1), ({}, 0)]
)
def test_ready_is_who_has_a_running_replica(
    saved: SavedRun, monkeypatch: pytest.MonkeyPatch, states: dict[str, int], count: int
) -> None:
    deployments = {replicas.MODEL: SimpleNamespace(replica_states=states)}
    status = SimpleNamespace(applications={"app": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(serve, "status", lambda: status)
    assert replicas.count_replicas("app") == count and replicas.count_replicas("another") == 0
    assert asyncio.run(send_to(None, saved).is_ready()) == (count > 0)


def test_the_web_server_of_an_application_is_healthy_while_it_runs(
    saved: SavedRun, model: InProcess, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="app"))
    build = ServiceBuilder(LIMITS, UriRules(), Access())
    web = WebServer(
        Handle(model, tmp_path, []), identify_model(saved), saved.classes, LIMITS, ("127.0.0.1", 0), tmp_path, build
    )
    web.check_health()
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    connection.request("POST", "/predict", clip, {"Content-Type": "video/mp4"})
    response = connection.getresponse()
    assert response.status == 200 and b'"classes"' in response.read()
    connection.close()
    web.stop()
    with pytest.raises(RuntimeError, match="the web server has ended"):
        web.check_health()


def test_a_request_that_is_too_late_is_withdrawn_from_its_replica(saved: SavedRun, clip: bytes, tmp_path: Path) -> None:
    """So that its place is free at once, and the replica works for nobody no more."""
    asked: list[asyncio.Future[Any]] = []

    def ask(content: bytes, options: RequestOptions, seconds: float) -> asyncio.Future[Any]:
        assert 0 < seconds <= 0.5
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    limits = replace(LIMITS, request_seconds=0.5, waiting=1)
    handle = SimpleNamespace(answer=SimpleNamespace(remote=ask))
    with run_service(send_to(handle, saved, limits), tmp_path / "uploads", limits) as running:
        for _ in range(2):
            reply = running.post(clip)
            assert (reply.status, reply.json["error"]) == (504, "too_late")
        assert [future.cancelled() for future in asked] == [True, True] and running.list_scratch() == []
