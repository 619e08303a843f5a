"""Requests that are too large, too slow or malformed: they are refused, and keep nothing of the server for themselves."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.serving.in_process import InProcess
from pipeline.serving.web import http_server
from tests.serving.conftest import LIMITS, Running, run_service
from tests.serving.test_predictions import BOUNDARY, make_form


@pytest.fixture(scope="module")
def strict(model: InProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that waits for little: half a second for a piece, a second for an upload."""
    limits = replace(LIMITS, stall_seconds=0.4, upload_seconds=1.2)
    with run_service(model, tmp_path_factory.mktemp("strict") / "uploads", limits) as running:
        yield running


@pytest.fixture(scope="module")
def server(model: InProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that waits as long as the test machine may need."""
    with run_service(model, tmp_path_factory.mktemp("server") / "uploads", LIMITS) as running:
        yield running


def open_request(running: Running, *headers: str, path: str = "/predict") -> socket.socket:
    """A connection through which the headers of an upload were sent."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{running.port}", "Content-Type: video/mp4", *headers]
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def measure_memory() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_length_above_the_limit_is_refused_by_the_header_alone(server: Running) -> None:
    with open_request(server, f"Content-Length: {10**12}", "Expect: 100-continue") as connection:
        begun = time.monotonic()
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 413") and b"connection: close" in reply.lower() and b"too_many_bytes" in reply
    assert time.monotonic() - begun < 10


def test_an_endless_upload_is_cut_off_and_memory_and_disk_hold_no_more_than_the_limit(server: Running) -> None:
    """Half a GiB in chunks, as fast as the server takes it."""
    before = measure_memory()
    with open_request(server, "Transfer-Encoding: chunked") as connection:
        piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
        sent = peak = 0
        try:
            for _ in range(512):
                connection.sendall(piece)
                sent += 1
                peak = max(peak, measure_memory())
        except OSError:
            pass  # the connection was closed while it was sent
        try:
            reply = read_all(connection)
        except ConnectionResetError:
            reply = b""
    assert reply[:12] in (b"HTTP/1.1 413", b"")
    assert peak - before < 64 * 2**20
    assert server.list_scratch() == []


def test_a_file_a_little_too_large_is_refused_in_every_form(server: Running) -> None:
    content = bytes(LIMITS.upload_bytes + 20_000)
    form, kind = make_form(content)
    for reply in (server.post(content), server.post(iter([content])), server.post(form, kind=kind)):
        assert (reply.status, reply.json["error"]) == (413, "too_many_bytes") and "2 MiB" in reply.json["detail"]


def test_an_upload_that_pauses_is_ended(strict: Running) -> None:
    with open_request(strict, "Content-Length: 1000") as connection:
        connection.sendall(b"x" * 10)
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 408") and b"too_slow" in reply
    assert strict.list_scratch() == []


def test_an_upload_that_drips_is_ended_after_its_time(strict: Running) -> None:
    begun = time.monotonic()
    with open_request(strict, "Content-Length: 100000") as connection:
        try:
            while time.monotonic() < begun + 10:
                connection.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - begun < 8
    assert strict.service._uploads == 0


@pytest.mark.parametrize("beginning", [b"", b"POST /predict HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_come_end_the_connection(
    model: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.5)
    with (
        run_service(model, tmp_path / "uploads") as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection,
    ):
        connection.sendall(beginning)
        assert read_all(connection) == b""


def test_the_second_request_of_a_connection_must_come_in_time_too(
    model: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.5)
    with (
        run_service(model, tmp_path / "uploads") as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection,
    ):
        request = f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode()
        for _ in range(3):  # longer than the time in all
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)
        connection.sendall(request[:20])
        assert read_all(connection) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\x02\x00\x01\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
     b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: many\r\n\r\n",
     b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcde"],
    ids=["TLS", "no path", "a megabyte of headers", "no number", "two lengths"],
)  # fmt: skip
def test_what_is_no_http_is_answered_with_400(server: Running, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            connection.sendall(request_bytes)
            reply = read_all(connection)
        except (ConnectionResetError, BrokenPipeError):
            reply = b"HTTP/1.1 400"
    assert reply.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_a_client_that_goes_away_leaves_nothing(server: Running) -> None:
    with open_request(server, "Content-Length: 1000") as connection:
        connection.sendall(b"x" * 500)
    deadline = time.monotonic() + 5
    while server.service._uploads or server.list_scratch():
        assert time.monotonic() < deadline
        time.sleep(0.02)


BAD: dict[str, tuple[Any, str, int, str]] = {
    "text": (b"abc", "text/plain", 415, "content_type"),
    "an image": (b"abc", "image/png", 415, "content_type"),
    "a form of words": (b"a=b", "application/x-www-form-urlencoded", 415, "content_type"),
    "a form without boundary": (b"abc", "multipart/form-data", 400, "form"),
    "a form that is none": (b"abc", f"multipart/form-data; boundary={BOUNDARY}", 400, "form"),
    "a form without file": (*make_form(b"abc", filename=None), 400, "form"),
    "an empty file": (*make_form(b""), 400, "empty"),
    "JSON that is none": (b"{", "application/json", 400, "json"),
    "JSON of another kind": (b'["uri"]', "application/json", 400, "json"),
    "JSON with more": (b'{"uri": "http://x/", "top": 3}', "application/json", 422, "options"),
    "JSON with a number": (b'{"uri": 3}', "application/json", 400, "json"),
    "deep JSON": (b"[" * 10_000, "application/json", 400, "json"),
    "long JSON": (b'{"uri": "' + b"x" * 20_000 + b'"}', "application/json", 413, "too_many_bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_bodies_are_refused(server: Running, name: str) -> None:
    body, kind, status, code = BAD[name]
    reply = server.post(body, kind=kind)
    assert (reply.status, reply.json["error"]) == (status, code), reply.body


def test_a_form_with_many_files_or_fields_is_refused(server: Running, clip: bytes) -> None:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="a.mp4"\r\n\r\nabc\r\n'
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"\r\n\r\nabc\r\n'
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    long = part.replace("filename", f"x={'y' * 9000}; filename")
    for lines, refused in ((part * 2, (400, "form")), (long, (400, "form")), (field * 100, (422, "options"))):
        reply = server.post(f"{lines}--{BOUNDARY}--\r\n".encode(), kind=kind)
        assert (reply.status, reply.json["error"]) == refused


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\..\\b", "x" * 3000, "list.m3u8", "%2e%2e/x"])
def test_the_name_of_a_file_means_nothing(server: Running, clip: bytes, name: str) -> None:
    body, kind = make_form(clip, filename=name)
    assert server.post(body, kind=kind).status == 200
    assert server.list_scratch() == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd, gzip"])
def test_compressed_bodies_are_not_unpacked(server: Running, clip: bytes, encoding: str) -> None:
    reply = server.post(clip, Content_Encoding=encoding)
    assert (reply.status, reply.json["error"]) == (415, "compressed")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("PUT", "/predict", 405), ("POST", "/", 405), ("GET", "/nothing", 404), ("GET", "/../x", 404),
     ("GET", "/templates/page.html.j2", 404), ("GET", "/page.js/..%2f..%2f", 404), ("DELETE", "/metrics", 405)],
)  # fmt: skip
def test_other_addresses_and_methods_are_refused(server: Running, method: str, path: str, status: int) -> None:
    reply = server.ask(method, path)
    assert (reply.status, reply.json["error"]) == (status, "http")
