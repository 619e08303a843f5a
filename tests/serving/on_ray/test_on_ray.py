"""Copies of the model on a Ray cluster: the same answers, also when a copy is killed; and the web server on the cluster."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import serve as serve_job
from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.in_process import open_answerer
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.web.server_metrics import Metrics
from tests.serving.conftest import LIMITS, Running, run_service
from tests.serving.web.test_access import TOKEN

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def replicas(ray_cluster: None, saved: SavedRun) -> Iterator[Answerer]:
    with open_answerer(saved, 2, LIMITS, Metrics()) as answerer:
        yield answerer


@pytest.fixture(scope="module")
def cluster(replicas: Answerer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_service(replicas, tmp_path_factory.mktemp("ray") / "uploads") as running:
        yield running


def list_processes(application: str) -> list[int]:
    """The processes of the replicas."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                name = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(f"ray::ServeReplica:{application}:model".encode()):
                found.append(int(folder.name))
    return found


def test_replicas_answer_as_this_process_does(cluster: Running, server: Running, clip: bytes, shared_data: Path) -> None:
    for content in (clip, (shared_data / "odd" / "vp9.webm").read_bytes()):
        there, here = cluster.post(content, "/predict?window=400ms"), server.post(content, "/predict?window=400ms")
        assert there.status == here.status == 200, there.body
        assert [one["name"] for one in there.json["classes"]] == [one["name"] for one in here.json["classes"]]
        for name in ("probability", "primary", "auxiliary"):
            np.testing.assert_allclose(
                [one[name] for one in there.json["classes"]], [one[name] for one in here.json["classes"]], rtol=1e-4
            )
        assert len(there.json["timeline"]) == len(here.json["timeline"])
    assert cluster.ask("GET", "/readyz").status == 200
    refused = cluster.post(b"no video")
    assert (refused.status, refused.json["error"]) == (415, "not_a_video")
    assert cluster.list_scratch() == []


@pytest.mark.long
def test_nothing_is_lost_when_a_replica_is_killed(cluster: Running, clip: bytes) -> None:
    application = cluster.service.answerer.application
    processes = list_processes(application)
    assert len(processes) == 2
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(cluster.post, clip) for _ in range(24)]
        while sum(future.done() for future in futures) < 4:
            time.sleep(0.01)
        os.kill(processes[0], signal.SIGKILL)
        replies = [future.result() for future in futures]
    assert [reply.status for reply in replies] == [200] * 24
    assert len({str(reply.json["classes"][0]["name"]) for reply in replies}) == 1
    deadline = time.monotonic() + 60
    while len(list_processes(application)) < 2 or processes[0] in list_processes(application):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert cluster.post(clip).status == 200


@pytest.mark.long
def test_a_second_server_does_not_take_the_place_of_the_first(
    cluster: Running, saved: SavedRun, clip: bytes, tmp_path: Path
) -> None:
    """Processes in two containers may have the same number, and share a cluster."""
    small = saved.config.scale.model_copy(update={"cpus_per_worker": 0.1})
    model = replace(saved, config=saved.config.model_copy(update={"scale": small}))
    with open_answerer(model, 1, LIMITS, Metrics()) as second, run_service(second, tmp_path / "uploads") as running:
        assert running.post(clip).status == 200 == cluster.post(clip).status
        assert second.application != cluster.service.answerer.application
        assert cluster.ask("GET", "/readyz").status == 200
    assert cluster.post(clip).status == 200


@pytest.mark.long
@pytest.mark.usefixtures("replicas")
def test_the_application_of_kuberay_serves_from_the_cluster_alone(
    saved: SavedRun, clip: bytes, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """Built by the function that cluster/base/rayservice.yaml names, from the words of the command."""
    from ray import serve

    monkeypatch.setenv("ACTNETFORMER_TOKEN", TOKEN)
    small = saved.config.scale.model_copy(update={"cpus_per_worker": 0.1})  # beside the replicas of the other tests
    model = replace(saved, config=saved.config.model_copy(update={"scale": small}))
    monkeypatch.setattr(serve_job, "open_model", lambda *_: model)
    words = f"/shared/model --host 0.0.0.0 --port {free_port} --replicas 1"
    serve.run(serve_job.build_application({"command": words}), name="kuberay", route_prefix=None)
    try:
        ask = partial(_ask, free_port)
        assert ask("GET", "/-/healthz") == (200, b"success")
        assert ask("GET", "/readyz")[0] == 200
        assert ask("POST", "/predict", clip, {"Content-Type": "video/mp4"})[0] == 401
        headers = {"Content-Type": "video/mp4", "Authorization": f"Bearer {TOKEN}"}
        status, content = ask("POST", "/predict", clip, headers)
        assert status == 200 and b'"classes"' in content, content
    finally:
        serve.delete("kuberay")


@pytest.fixture
def free_port() -> int:
    from pipeline.serving.web.http_server import open_socket

    with open_socket("127.0.0.1", 0) as bound:
        return int(bound.getsockname()[1])


def _ask(port: int, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    status, content = response.status, response.read()
    connection.close()
    return status, content
