"""The address of a cluster's dashboard, and what is told where none answers or another server does."""

from __future__ import annotations

import socket
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
import ray

from pipeline.errors import UserError
from pipeline.ray_cluster import dashboard
from pipeline.ray_cluster.dashboard import DEFAULT_ADDRESS, Dashboard, find_dashboard_address


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")


def test_address_given_first_then_rays_variables() -> None:
    environ = {"RAY_ADDRESS": "http://b:1", "RAY_API_SERVER_ADDRESS": "https://c:2/"}
    assert find_dashboard_address("http://a:3", environ) == "http://a:3"
    assert find_dashboard_address(None, environ) == "https://c:2"
    assert find_dashboard_address(None, {}) == DEFAULT_ADDRESS


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("ray://head:10001", "--address http://head:8265"),
        ("head:6379", "names port 6379, where drivers join the cluster.*--address http://head:8265"),
        ("[fd00::1]:6379", r"--address http://\[fd00::1\]:8265"),
        ("head:9000", "--address http://head:9000"),
        ("head", "--address http://head:8265"),
        ("http://head:dashboard", "port must be a number.*--address http://HEAD:8265"),
        ("head:dashboard", "port must be a number.*--address http://HEAD:8265"),
        ("http://head:99999", "port must be a number"),
        ("auto", "which cluster to join.*--address http://HEAD:8265, where HEAD is the address of the .*head node"),
        ("local", "which cluster to join.*--address http://HEAD:8265.*on that node itself http://127.0.0.1:8265"),
        ("http://", "names no host; give .*--address http://HEAD:8265"),
        ("ray://:10001", "names no host; give .*--address http://HEAD:8265"),
        ("http://[x", "is not a URL; give .*--address http://HEAD:8265"),
    ],
)
def test_what_is_no_dashboards_address_is_refused_with_the_one_that_was_meant(address: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"^--address .*{meant}"):
        find_dashboard_address(address, {})
    with pytest.raises(UserError, match=f"^RAY_ADDRESS .*{meant}"):
        find_dashboard_address(None, {"RAY_ADDRESS": address})


def test_a_clusters_other_port_is_told_from_its_dashboard() -> None:
    """What answers a web request there are bytes of HTTP/2."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(UserError, match=r"no Ray cluster answers at .*--address http://HEAD:8265") as refused:
            Dashboard(f"http://127.0.0.1:{port}")
    finally:
        server.stop(None)
    assert str(refused.value).isprintable()


def test_a_server_that_never_answers_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"no Ray cluster answers .* within 0.3 s"):
            Dashboard(address)


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>hello</html>"), (200, b"{}"), (404, b""), (500, b"")])
def test_a_server_that_is_no_ray_is_told(status: int, body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError, match="is not the dashboard of a Ray cluster"):
                Dashboard(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_another_version_of_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job would be packed, and its log read, by rules of another version."""
    monkeypatch.setattr(ray, "__version__", "2.99.0")

    class Head(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "4", "ray_version": "2.60.0"}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Head) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError, match=r"is 2\.60\.0, this environment's is 2\.99\.0: use the same version"):
                Dashboard(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
