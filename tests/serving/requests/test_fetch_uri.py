"""Which URIs are fetched, and that none leads into the server's own network or to its files."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.serving.in_process import InProcess
from pipeline.serving.requests import fetch_uri
from pipeline.serving.requests.fetch_uri import UriRules, check_uri, fetch, find_addresses, is_public, parse_prefix
from pipeline.serving.requests.limits import Limits, Refusal
from pipeline.serving.requests.scratch import Scratch
from tests.object_store import ObjectStore
from tests.serving.conftest import LIMITS, Running, run_service

RULES = UriRules(("https://videos.example.org/clips/", "s3://bucket/clips/"))


@pytest.mark.parametrize(
    "text",
    ["file:///data/", "/data/", "data/", "ftp://example.org/", "http:///clips/", "https://example.org/clips", "https://", "s3://",
     "https://example.org/clips/?a=b/", "https://user@example.org/", "https://example.org/../", "gopher://example.org/", "local://x/"],
)  # fmt: skip
def test_what_may_not_be_allowed(text: str) -> None:
    with pytest.raises(UserError, match="--allow-uri"):
        parse_prefix(text)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("https://Videos.Example.org", "https://videos.example.org/"), ("https://Videos.Example.org/", "https://videos.example.org/"),
     ("http://example.org:8080/a/b/", "http://example.org:8080/a/b/"), ("s3://Bucket/", "s3://Bucket/")],
)  # fmt: skip
def test_what_may_be_allowed(text: str, prefix: str) -> None:
    assert parse_prefix(text) == prefix


@pytest.mark.parametrize(
    "uri",
    ["https://videos.example.org/clips/a.mp4", "https://VIDEOS.example.org/clips/a.mp4?x=1", "s3://bucket/clips/a/b.mp4"],
)
def test_allowed_uris(uri: str) -> None:
    assert check_uri(uri, RULES).path.startswith("/clips/")


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("file:///etc/passwd", 403), ("/etc/passwd", 403), ("http://videos.example.org/clips/a.mp4", 403),
        ("https://videos.example.org/other/a.mp4", 403), ("https://videos.example.org:444/clips/a.mp4", 403),
        ("https://videos.example.org.evil.org/clips/a.mp4", 403), ("https://evil.org/https://videos.example.org/clips/", 403),
        ("s3://bucket2/clips/a.mp4", 403), ("s3://BUCKET/clips/a.mp4", 403), ("https://videos.example.org/clipsx/a.mp4", 403),
        ("https://videos.example.org/clips/../secret", 400), ("https://videos.example.org/clips/%2e%2e/secret", 400),
        ("https://videos.example.org/clips/%2E./secret", 400), ("https://videos.example.org/clips/..%2fsecret", 400),
        ("https://videos.example.org/clips/..%5csecret", 400), ("https://videos.example.org/clips/a%zz", 400),
        ("https://videos.example.org@evil.org/clips/a.mp4", 400), ("https://a:b@videos.example.org/clips/a.mp4", 400),
        ("https://videos.example.org\\\\@evil.org/clips/a", 400), ("https://videos.example.org/clips/a b", 400),
        ("https://videos.example.org/clips/a\\r\\nHost: x", 400), ("https://videos.example.org/clips/a#b", 400),
        ("https://videos.example.org/clips/\\x00", 400), ("https://videos.example.org:99999/clips/", 400),
        ("https://[videos/clips/", 400), ("https://videos.example.org/clips/ä.mp4", 400), ("", 403), ("x" * 3000, 400),
    ],
)  # fmt: skip
def test_other_uris_are_refused(uri: str, status: int) -> None:
    text = uri.encode().decode("unicode_escape") if "\\" in uri else uri
    with pytest.raises(Refusal) as caught:
        check_uri(text, RULES)
    assert caught.value.status == status


def fetch_here(uri: str, rules: UriRules, limits: Limits, path: Path) -> None:
    """Fetches a file as a request does that begins now."""
    fetch(uri, rules, limits, path, time.monotonic() + limits.upload_seconds, Scratch(path.parent))


def test_without_rules_no_uri_is_fetched(server: Running) -> None:
    with pytest.raises(Refusal) as caught:
        check_uri("https://videos.example.org/clips/a.mp4", UriRules())
    assert caught.value.status == 403
    reply = server.post(b'{"uri": "file:///etc/passwd"}', kind="application/json")
    assert (reply.status, reply.json["error"]) == (403, "uri")


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Makes the names of hosts mean these addresses, another list at each look-up; returns the names that were looked up."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["8.8.8.8", "192.168.0.1"]])
def test_a_host_with_any_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    resolve_to(monkeypatch, addresses)
    with pytest.raises(Refusal) as caught:
        find_addresses("videos.example.org", 443, private=False)
    assert (caught.value.status, caught.value.code) == (403, "private_address")
    assert len(find_addresses("videos.example.org", 443, private=True)) == len(addresses)


def test_the_checked_address_is_connected_to_and_the_name_is_not_looked_up_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name that means a public address when it is checked, and this machine when it is used."""
    asked = resolve_to(monkeypatch, ["203.0.114.7"], ["127.0.0.1"])
    connected: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(Refusal) as caught:
        fetch_here("https://videos.example.org/clips/a.mp4", RULES, LIMITS, tmp_path / "upload")
    assert (caught.value.status, caught.value.code) == (422, "unreachable")
    assert asked == ["videos.example.org"] and connected == [("203.0.114.7", 443)]


# -------------------------------------------------------------------------------------------- what web servers do


class Files(BaseHTTPRequestHandler):
    """A web server with good and bad manners."""

    content = b""
    asked: list[str] = []  # noqa: RUF012 - one list for all requests is meant

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2]
        if name == "redirect.mp4":
            self.send_response(302)
            self.send_header("Location", "/clips/good.mp4")
            self.end_headers()
        elif name == "missing.mp4":
            self.send_error(404)
        elif name == "large.mp4":
            self._begin(10**10)
        elif name == "endless.mp4":
            self._begin(None)
            while True:
                self.wfile.write(bytes(65536))
        elif name == "short.mp4":
            self._begin(len(self.content))
            self.wfile.write(self.content[:100])
        elif name == "slow.mp4":
            self._begin(len(self.content))
            for position in range(1000):
                self.wfile.write(self.content[position : position + 1])
                time.sleep(0.05)
        elif name == "packed.mp4":
            self._begin(len(self.content), **{"Content-Encoding": "gzip"})
            self.wfile.write(self.content)
        elif name == "empty.mp4":
            self._begin(0)
        else:
            self._begin(len(self.content))
            self.wfile.write(self.content)

    def _begin(self, length: int | None, **headers: str) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are meant."""


@pytest.fixture(scope="module")
def files(clip: bytes) -> Iterator[str]:
    """The address of a web server of this machine."""
    Files.content = clip
    with QuietServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/clips/"
        server.shutdown()


@pytest.fixture(scope="module")
def fetching(model: InProcess, files: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that may fetch from there, for at most a second."""
    limits = replace(LIMITS, upload_seconds=1.0, stall_seconds=0.5)
    rules = UriRules((parse_prefix(files),), private=True)
    with run_service(model, tmp_path_factory.mktemp("fetching") / "uploads", limits, rules) as running:
        yield running


def ask_for(running: Running, uri: str) -> Any:
    return running.post(f'{{"uri": "{uri}"}}'.encode(), kind="application/json")


def test_a_file_behind_a_uri_gets_the_answer_of_an_upload(fetching: Running, files: str, clip: bytes) -> None:
    reply = ask_for(fetching, files + "good.mp4")
    assert reply.status == 200, reply.body
    assert reply.json["classes"] == fetching.post(clip).json["classes"]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("redirect.mp4", 422, "redirect"), ("missing.mp4", 422, "missing"), ("large.mp4", 413, "too_many_bytes"),
     ("endless.mp4", 413, "too_many_bytes"), ("short.mp4", 422, "unreachable"), ("slow.mp4", 408, "too_slow"),
     ("packed.mp4", 422, "compressed"), ("empty.mp4", 422, "empty"), ("../secret.mp4", 400, "uri")],
)  # fmt: skip
def test_what_web_servers_do_ends_in_a_refusal(fetching: Running, files: str, name: str, status: int, code: str) -> None:
    reply = ask_for(fetching, files + name)
    assert (reply.status, reply.json["error"]) == (status, code), reply.body
    assert fetching.list_scratch() == []


def test_a_redirect_is_not_followed(fetching: Running, files: str) -> None:
    Files.asked.clear()
    ask_for(fetching, files + "redirect.mp4")
    assert Files.asked == ["/clips/redirect.mp4"]


def test_this_machine_is_not_asked_unless_that_is_allowed(model: InProcess, files: str, tmp_path: Path) -> None:
    Files.asked.clear()
    with run_service(model, tmp_path / "uploads", LIMITS, UriRules((parse_prefix(files),))) as running:
        reply = ask_for(running, files + "good.mp4")
    assert (reply.status, reply.json["error"]) == (403, "private_address") and Files.asked == []


def test_a_port_that_speaks_another_language_is_a_refusal(model: InProcess, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def talk() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.close()

        threading.Thread(target=talk, daemon=True).start()
        rules = UriRules((f"http://127.0.0.1:{port}/",), private=True)
        with pytest.raises(Refusal) as caught:
            fetch_here(f"http://127.0.0.1:{port}/x", rules, LIMITS, tmp_path / "upload")
    assert (caught.value.status, caught.value.code) == (422, "unreachable")
    assert "SSH" not in caught.value.text


def test_objects_of_a_store_are_fetched_within_the_limit(tmp_path: Path, clip: bytes) -> None:
    """The owner's credentials and endpoint are used, which is why a bucket must be allowed by name."""
    store = ObjectStore()
    with store.name_in_environment():
        store.put("bucket")
        store.put("bucket/clips/a.mp4", clip)
        fetch_here("s3://bucket/clips/a.mp4", RULES, LIMITS, tmp_path / "upload")
        assert (tmp_path / "upload").read_bytes() == clip
        with pytest.raises(Refusal) as caught:
            fetch_here("s3://bucket/clips/a.mp4", RULES, replace(LIMITS, upload_bytes=100), tmp_path / "upload")
        assert caught.value.status == 413
        with pytest.raises(Refusal) as caught:
            fetch_here("s3://bucket/clips/none.mp4", RULES, LIMITS, tmp_path / "upload")
        assert (caught.value.status, caught.value.code) == (422, "missing")
    store.stop()


def hang(*_: Any, **__: Any) -> Any:
    time.sleep(4)


@pytest.mark.parametrize("what", ["the name server", "the store"])
def test_whatever_hangs_the_time_of_an_upload_is_kept(
    model: InProcess, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nor does it delay the end of the server."""
    if what == "the store":
        monkeypatch.setattr(storage, "get_file_info", hang)
    else:
        monkeypatch.setattr(fetch_uri, "find_addresses", hang)
    rules = UriRules(("s3://bucket/clips/", parse_prefix(files)), private=True)
    with run_service(model, tmp_path / "uploads", replace(LIMITS, upload_seconds=1.0), rules) as running:
        begun = time.monotonic()
        reply = ask_for(running, "s3://bucket/clips/a.mp4" if what == "the store" else files + "good.mp4")
        assert (reply.status, reply.json["error"]) == (408, "too_slow") and time.monotonic() - begun < 2.5
        assert running.list_scratch() == []
    assert time.monotonic() - begun < 3.5


def test_the_time_counts_from_the_request_and_not_again_from_the_fetch(model: InProcess, files: str, tmp_path: Path) -> None:
    rules = UriRules((parse_prefix(files),), private=True)
    body = f'{{"uri": "{files}slow.mp4"}}'.encode()
    lines = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    limits = replace(LIMITS, upload_seconds=2.0, stall_seconds=2.0)
    with (
        run_service(model, tmp_path / "uploads", limits, rules) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection,
    ):
        begun = time.monotonic()
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[:5])
        time.sleep(1.5)
        connection.sendall(body[5:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < 3.0
