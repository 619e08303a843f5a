"""How a server ends: nothing new is taken, what was taken is answered, and nobody can make it last."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.serving.in_process import InProcess
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web import service
from pipeline.serving.web.access import Access
from pipeline.serving.web.app import build_app
from pipeline.serving.web.http_server import Server, make_server, open_socket
from pipeline.serving.web.service import Service, compute_stop_seconds
from tests.serving.conftest import LIMITS, Running
from tests.serving.requests.test_uploads import open_request, read_all
from tests.serving.web.test_service import Slow, wait_until


@contextmanager
def run_until_told(answerer: InProcess, scratch: Path) -> Iterator[tuple[Running, Server, threading.Thread]]:
    """A server that the test stops."""
    scratch.mkdir()
    bound = open_socket("127.0.0.1", 0)
    running = Running("", Service(answerer, LIMITS, Scratch(scratch)), bound.getsockname()[1])
    server = make_server(build_app(running.service, Access()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield running, server, thread
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_idle_connections_and_headers_that_do_not_come_do_not_delay_the_end(model: InProcess, tmp_path: Path) -> None:
    with run_until_told(model, tmp_path / "uploads") as (running, server, thread):
        idle = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        idle.request("GET", "/livez")
        idle.getresponse().read()
        half = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        half.connect()
        half.sock.sendall(b"GET /livez HTTP/1.1\r\nHost: 127")
        begun = time.monotonic()
        server.should_exit = True
        thread.join(timeout=20)
        assert time.monotonic() - begun < 3
        idle.close()
        half.close()


def test_an_upload_that_drips_is_told_that_the_server_stops(
    model: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have 20 s, and uvicorn alone would wait as long, and then break it off."""
    monkeypatch.setattr(service, "STOP_UPLOAD_SECONDS", 1.0)
    with (
        run_until_told(model, tmp_path / "uploads") as (running, server, thread),
        open_request(running, "Content-Length: 100000") as connection,
    ):
        connection.sendall(b"x")
        wait_until(lambda: running.service._uploads == 1)
        begun = time.monotonic()
        server.should_exit = True
        while thread.is_alive() and time.monotonic() < begun + 15:
            try:
                connection.sendall(b"x")
            except OSError:
                break
            time.sleep(0.1)
        reply = read_all(connection)
        thread.join(timeout=15)
        assert time.monotonic() - begun < 8
    assert reply.startswith(b"HTTP/1.1 503") and b'"stopping"' in reply and b"retry-after: 5" in reply.lower()


def test_an_upload_that_is_nearly_complete_is_answered(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    with (
        run_until_told(model, tmp_path / "uploads") as (running, server, thread),
        open_request(running, f"Content-Length: {len(clip)}") as connection,
    ):
        connection.sendall(clip[:-100])
        wait_until(lambda: running.service._uploads == 1)
        server.should_exit = True
        time.sleep(0.5)
        connection.sendall(clip[-100:])
        reply = read_all(connection)
        thread.join(timeout=20)
    assert reply.startswith(b"HTTP/1.1 200") and b'"classes"' in reply


def test_a_request_that_computes_has_its_own_time_limit_and_then_the_server_ends_at_once(
    model: InProcess, clip: bytes, tmp_path: Path
) -> None:
    slow = Slow(model)
    with ThreadPoolExecutor(1) as threads, run_until_told(slow, tmp_path / "uploads") as (running, server, thread):
        future = threads.submit(running.post, clip)
        wait_until(lambda: slow.begun == 1)
        server.should_exit = True
        time.sleep(1.0)
        with pytest.raises(OSError, match="refused"):
            running.ask("GET", "/livez")
        assert thread.is_alive()
        slow.may_go.set()
        assert future.result().status == 200
        begun = time.monotonic()
        thread.join(timeout=20)
        assert time.monotonic() - begun < 3
    slow._threads.shutdown()


def test_the_end_waits_for_the_longest_request_that_the_limits_allow() -> None:
    assert 90 < compute_stop_seconds(replace(LIMITS, request_seconds=90.0)) < 105


def test_a_server_that_stops_takes_no_upload(model: InProcess, clip: bytes, tmp_path: Path) -> None:
    """Such as one whose headers arrived just before."""
    with run_until_told(model, tmp_path / "uploads") as (running, _, _):
        running.service._stopping.set()
        reply = running.post(clip)
        assert (reply.status, reply.json["error"], reply.headers["retry-after"]) == (503, "stopping", "5")
        assert running.list_scratch() == []
