"""What HTTP asks of a server beside the requests that its own page makes."""

from __future__ import annotations

import http.client
import socket
import threading
from pathlib import Path

import pytest

from pipeline.serving.web.access import Access
from pipeline.serving.web.app import build_loading_app
from pipeline.serving.web.http_server import answer_while_loading, make_server, open_socket
from pipeline.serving.web.server_metrics import Metrics
from tests.serving.conftest import Running
from tests.serving.requests.test_uploads import open_request, read_all
from tests.serving.web.test_access import TOKEN


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/-/healthz", "/metrics", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(server: Running, path: str) -> None:
    got, head = server.ask("GET", path), server.ask("HEAD", path)
    assert got.status == head.status == 200 and head.body == b""
    assert head.headers["content-type"] == got.headers["content-type"] and int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("OPTIONS", "/predict", "POST"), ("HEAD", "/predict", "POST"), ("POST", "/livez", "GET")]
)
def test_the_methods_that_there_are_are_told(server: Running, method: str, path: str, allowed: str) -> None:
    reply = server.ask(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert "access-control-allow-origin" not in reply.headers


def test_a_request_of_two_lengths_ends_its_connection(server: Running) -> None:
    """Otherwise a proxy that believes the other length would take a part of a body for somebody's next request."""
    smuggled = f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
    with open_request(server, "Content-Length: 3", "Transfer-Encoding: chunked") as connection:
        connection.sendall(b"3\r\nabc\r\n0\r\n\r\n" + smuggled)
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 400") and b"two_lengths" in reply and b"connection: close" in reply.lower()
    assert reply.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(("path", "status"), [("/predict?top=0", 422), ("/nothing", 404), ("/livez", 405)])
@pytest.mark.parametrize("size", [10, 500_000])
def test_a_connection_is_used_on_after_an_error(server: Running, path: str, status: int, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for _ in range(3):
        connection.request("POST", path, bytes(size), {"Content-Type": "video/mp4"})
        response = connection.getresponse()
        assert response.status == status and response.read()
        connection.request("GET", "/livez")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"ok\n")
    connection.close()


def test_clients_do_not_fill_the_log(server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    """uvicorn would say for each of these that a library is to be installed, or that it was invalid."""
    for lines in (
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        b"\0\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(lines)
            assert read_all(connection).startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert capfd.readouterr().err == ""


def test_a_server_that_loads_lives_and_is_not_ready(tmp_path: Path) -> None:
    """The next server takes its socket over."""
    metrics = Metrics()
    with open_socket("127.0.0.1", 0) as bound:
        running = Running("", None, bound.getsockname()[1])  # type: ignore[arg-type]
        with answer_while_loading(build_loading_app(Access(TOKEN), metrics), bound):
            assert running.ask("GET", "/livez").body == b"ok\n"
            assert running.post(bytes(100_000)).status == 401
            for reply in (running.ask("GET", "/readyz"), running.post(bytes(100_000), Authorization=f"Bearer {TOKEN}")):
                assert (reply.status, reply.json["error"], reply.headers["retry-after"]) == (503, "not_ready", "5")
        server = make_server(build_loading_app(Access(), metrics))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        assert running.ask("GET", "/livez").status == 200
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
