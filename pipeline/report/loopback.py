"""Serves pages to browsers of this machine alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

from pipeline.errors import UserError

HOST = "127.0.0.1"
Server = TypeVar("Server", bound=ThreadingHTTPServer)


def open_port(make: Callable[[], Server], port: int, option: str) -> Server:
    """Makes a server that listens at ``port``. Raises UserError that names ``option`` if the port is none, or is taken."""
    if not 0 <= port < 2**16:
        raise UserError(f"{option} {port} is not a port: write 0 (any that is free) to 65535")
    try:
        return make()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"port {port} of {HOST} cannot be used ({why}): name another with {option} PORT") from None


class LoopbackHandler(BaseHTTPRequestHandler):
    """What the handlers of such a server share: they refuse foreign names, and let no page show the answer in a frame."""

    server: ThreadingHTTPServer
    timeout = 30

    def do_GET(self) -> None:
        """Answers a request, if it is of this machine."""
        if self._is_local():
            self.answer_get()

    def do_POST(self) -> None:
        """Answers a request that brings something, if it is of this machine."""
        if self._is_local():
            self.answer_post()

    def answer_get(self) -> None:
        """Answers a request for a page; each server has its own."""
        raise NotImplementedError

    def answer_post(self) -> None:
        """Answers a request that brings something; most servers take nothing."""
        self.reply(405, b"nothing is taken here", "text/plain")

    def _is_local(self) -> bool:
        """Whether the browser was sent here by this machine's address; otherwise it gets an answer that refuses it.

        A foreign name that leads here is one that another site has made, to let its scripts read the answers.
        """
        if self.headers.get("Host", "") in (f"{HOST}:{self.server.server_port}", f"localhost:{self.server.server_port}"):
            return True
        self.reply(403, b"not by this name", "text/plain")
        return False

    def reply(self, code: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Sends an answer that no browser keeps."""
        self.send_response(code)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY", "Content-Security-Policy": "frame-ancestors 'none'", **(headers or {}),
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing: the terminal shows the address."""
