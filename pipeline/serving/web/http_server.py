"""The web server: uvicorn with a time limit for headers, which it lacks, on a socket that is opened before the model is."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import UserError
from pipeline.serving.web.app import WebApplication

HEADER_SECONDS = 10.0
"""Time in which the headers of a request must be complete, from the opening of the connection or the first byte."""
KEEP_ALIVE_SECONDS = 15
MOST_CONNECTIONS = 512
"""Connections above this number get 503."""
BACKLOG = 256


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request headers do not arrive; h11 limits their bytes to 64 KiB."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts to wait for headers."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Keeps waiting unless these bytes complete the headers."""
        before = self.cycle  # None before the first request, for which the timer runs already
        super().data_received(data)
        if self.cycle is not before:
            self._stop_timer()
        elif self._timer is None and before.response_complete:
            self._start_timer()  # the beginning of the next request of the connection

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def open_socket(host: str, port: int) -> socket.socket:
    """Opens a socket that listens. Raises UserError if that is not possible, for example if the port is in use.

    It listens at once, because two programs may bind a port on which neither listens. Whoever connects before the server
    runs waits.
    """
    name = host.strip("[]")
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} must be between 0 and 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no address of this machine ({getattr(error, 'strerror', None) or error})") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not SO_REUSEPORT: two servers would share the requests
    try:
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        remedy = {
            errno.EADDRINUSE: "another program listens there; choose another one with --port, or 0 for any that is free",
            errno.EACCES: "ports below 1024 are for the system's administrator; choose one with --port",
            errno.EADDRNOTAVAIL: "this is not an address of this machine",
        }.get(error.errno or 0, error.strerror or str(error))
        raise UserError(f"--host {host} --port {port} cannot be used: {remedy}") from None
    return bound


def describe_address(bound: socket.socket) -> str:
    """Returns the address of a server for a browser on the same machine."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A server that tells its application when it begins to stop: uvicorn does so only after the last answer."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, and ends when the requests at work are answered."""
        self._stop()
        await super().shutdown(sockets)


def make_server(app: WebApplication) -> Server:
    """Makes a server that answers by ``app``; ``serve(sockets=[...])`` runs it."""
    config = uvicorn.Config(
        app, http=HeaderTimeoutProtocol, ws="none", lifespan="on", log_level="error", access_log=False, server_header=False,
        limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_SECONDS, backlog=BACKLOG, proxy_headers=False,
        timeout_graceful_shutdown=app.stop_seconds,
    )  # fmt: skip
    return Server(config, app.stop)


@contextlib.contextmanager
def answer_while_loading(app: WebApplication, bound: socket.socket) -> Iterator[None]:
    """Answers by ``app`` until the block ends, from a thread, on a socket that another server is to take over then."""
    server = make_server(app)
    # daemon: a second signal in this wait ends the program
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound.dup()]}, name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def run_server(app: WebApplication, bound: socket.socket) -> None:
    """Answers until SIGINT or SIGTERM, and then until the requests at work are answered. Both signals are a normal end."""
    with _ignore_signals_afterward():
        make_server(app).run(sockets=[bound])


@contextlib.contextmanager
def _ignore_signals_afterward() -> Iterator[None]:
    """uvicorn raises a signal again after it has stopped because of it; it then finds these handlers, which do nothing."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
