"""A real S3 server on loopback, and a proxy before it that is as bad as real stores on a bad day."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from pipeline.clips.isolated_decode import get_isolated_decoder
from pipeline.files import remote_stores

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class ObjectStore:
    """``failures``: how many requests for a path that contains the key are still to be answered 503; ``delays``: seconds."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.failures: Counter[str] = Counter()
        self.delays: dict[str, float] = {}
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.backend = self.server.get_host_and_port()
        self.proxy = ThreadingHTTPServer((address, port), _handler(self))
        self.proxy.daemon_threads = True
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        self.endpoint = f"http://{address}:{self.proxy.server_address[1]}"

    def put(self, path: str, content: bytes = b"") -> None:
        """Store an object, or make a bucket of a path without a slash."""
        self._request("PUT", urllib.parse.quote(path), content)

    def read(self, path: str) -> bytes:
        """Reads what a GET of the path returns."""
        return self._request("GET", path)

    def remove(self, path: str) -> None:
        """Deletes an object."""
        self._request("DELETE", urllib.parse.quote(path))

    def _request(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """Asks the server behind the proxy."""
        with contextlib.closing(http.client.HTTPConnection(*self.backend)) as connection:
            connection.request(method, f"/{path}", content, {"Authorization": SIGNED})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status in (200, 204), content
            return content

    @contextlib.contextmanager
    def name_in_environment(self) -> Iterator[None]:
        """Name the store in this process's environment.

        Connections and decoding processes of earlier tests are ended, because they know another store or none; those made here
        are ended after it.
        """
        with pytest.MonkeyPatch.context() as patched:
            for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}.items():
                patched.setenv(name, value)
            _forget_stores()
            yield
        _forget_stores()

    def stop(self) -> None:
        """End both servers."""
        self.proxy.shutdown()
        self.proxy.server_close()
        self.server.stop()


def _forget_stores() -> None:
    remote_stores.connect_to_store.cache_clear()
    get_isolated_decoder.cache_clear()


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            store.requests.append((self.command, self.path))
            for key, seconds in list(store.delays.items()):  # a request of an earlier test may still wait
                time.sleep(seconds if key in self.path else 0)
            for key, left in list(store.failures.items()):
                if key in self.path and left > 0:
                    store.failures[key] -= 1
                    self._body()
                    return self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>")
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            content = self._body()
            with contextlib.closing(http.client.HTTPConnection(*store.backend)) as connection:
                try:
                    connection.request(self.command, self.path, content, headers)
                    answer = connection.getresponse()
                    said = answer.status, dict(answer.getheaders()), answer.read()
                except OSError:  # a request that was delayed outlived the store
                    said = 502, {}, b""
            return self._answer(*said)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    return Handler
