"""Fetches files behind URIs, only from where the server's owner allows it, and never from inside the server's own network."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.serving.requests.limits import Limits, Refusal, make_too_large_refusal, make_too_slow_refusal
from pipeline.serving.requests.scratch import Scratch

WEB, STORES = ("http", "https"), ("s3", "s3a", "gs", "gcs")
PIECE = 256 * 1024
"""Bytes that are in memory while a file is fetched."""
Address = tuple[Any, ...]
"""What ``socket.connect`` takes."""


@dataclass(frozen=True)
class UriRules:
    """Which URIs may be fetched."""

    prefixes: tuple[str, ...] = ()
    """Beginnings of allowed URIs, as ``parse_prefix`` returns them; without any, no URI is fetched."""
    private: bool = False
    """Whether hosts with private, loopback and other addresses that are not public may be asked."""


def parse_prefix(text: str) -> str:
    """Checks an ``--allow-uri``. Raises UserError if it would allow more than one host or bucket, or files of this machine."""
    parts = _split(text)
    if parts is None or parts.scheme not in (*WEB, *STORES) or not parts.netloc:
        schemes = ", ".join((*WEB, *STORES))
        raise UserError(f"--allow-uri {text}: write the beginning of URIs with a host or bucket, of {schemes}, for example "
                        "https://videos.example.org/clips/")  # fmt: skip
    path = parts.path or "/"
    if parts.query or not path.endswith("/"):
        raise UserError(f"--allow-uri {text}: end it with /, so that it is clear where the allowed folder ends")
    return f"{parts.scheme}://{parts.netloc.lower() if parts.scheme in WEB else parts.netloc}{path}"


def check_uri(uri: str, rules: UriRules) -> SplitResult:
    """Returns the parts of a URI that may be fetched. Raises Refusal with status 400 or 403 otherwise."""
    if not rules.prefixes:
        raise Refusal(403, "uri", "this server fetches no URIs: upload the file (its owner may allow some with --allow-uri)")
    parts = _split(uri)
    if parts is None:
        raise Refusal(400, "uri", "this is no URI without user, fragment, spaces, backslashes and parts such as ..")
    netloc = parts.netloc.lower() if parts.scheme in WEB else parts.netloc
    if not any(f"{parts.scheme}://{netloc}{parts.path or '/'}".startswith(prefix) for prefix in rules.prefixes):
        raise Refusal(403, "uri", "this server may not fetch this URI; allowed are those that begin with: "
                      + ", ".join(rules.prefixes))  # fmt: skip
    return parts


def _split(uri: str) -> SplitResult | None:
    """Splits a URI that has only one meaning; None for others, which two programs may understand differently."""
    if not uri.isascii() or len(uri) > 2000 or re.search(r"[\x00-\x20\x7f\\#]", uri):
        return None
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return None
    steps = re.split(r"/|%2f|%5c", parts.path.lower())
    climbs = any(step.replace("%2e", ".") in (".", "..") for step in steps)
    if "@" in parts.netloc or climbs or port == 0 or re.search(r"%(?![0-9A-Fa-f]{2})", uri):
        return None
    return parts


def find_addresses(host: str, port: int, private: bool) -> list[tuple[int, Address]]:
    """Looks up a host. Returns address families and addresses, all of which may be connected to.

    Raises Refusal if the host is unknown, or if any of its addresses is not public and ``private`` is False. Whoever connects
    must use these addresses and not the name, which may mean something else a moment later (DNS rebinding).
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Refusal(422, "unreachable", "the host of the URI is unknown") from None
    if not private and not all(is_public(str(address[0])) for *_, address in found):
        raise Refusal(403, "private_address", "the host of the URI has an address that is not public")
    return [(family, address) for family, _, _, _, address in found]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def fetch(uri: str, rules: UriRules, limits: Limits, path: Path, deadline: float, scratch: Scratch) -> None:
    """Fetches a file to ``path``, which lies in ``scratch``, until ``deadline``, in the time of ``time.monotonic``. Raises
    Refusal if it is not allowed, not there, too large or too slow."""
    parts = check_uri(uri, rules)
    with scratch.refuse_errors():
        file = path.open("wb")
    with file:
        copy = _Copy(file, limits, deadline, scratch)
        if parts.scheme in WEB:
            _fetch_web(parts, rules, copy)
        else:
            _fetch_store(uri, copy)
    if copy.count == 0:
        raise Refusal(422, "empty", "the file behind the URI has no bytes")


@dataclass
class _Copy:
    """Writes what is fetched to a file, within the limits."""

    file: BinaryIO
    limits: Limits
    deadline: float
    scratch: Scratch
    count: int = 0
    """Bytes that were written."""

    def compute_seconds_left(self) -> float:
        """Computes the time that is left. Raises Refusal if there is none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise make_too_slow_refusal(self.limits)
        return left

    def run(self, read: Callable[[int], bytes]) -> None:
        """Copies what ``read`` returns until it returns nothing."""
        while piece := read(PIECE):
            self.count += len(piece)
            if self.count > self.limits.upload_bytes:
                raise make_too_large_refusal(self.limits)
            self.compute_seconds_left()
            with self.scratch.refuse_errors():
                self.file.write(piece)


def _fetch_store(uri: str, copy: _Copy) -> None:
    try:
        if storage.get_file_info(uri).bytes > copy.limits.upload_bytes:
            raise make_too_large_refusal(copy.limits)
        with storage.open_file(uri) as source:
            copy.run(source.read)
    except FileNotFoundError:
        raise Refusal(422, "missing", "there is no such file behind the URI") from None
    except OSError:
        raise Refusal(422, "unreachable", "the file behind the URI cannot be read") from None


def _fetch_web(parts: SplitResult, rules: UriRules, copy: _Copy) -> None:
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with _connect(parts.scheme, host, find_addresses(host, port, rules.private), port, copy) as connection:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "actnetformer"})
            with connection.getresponse() as response:
                _check_response(response, copy.limits)
                copy.run(response.read1)
                copy.compute_seconds_left()
                if response.length:  # the rest is missing, which http.client lets pass
                    raise http.client.IncompleteRead(b"")
    except TimeoutError:
        raise make_too_slow_refusal(copy.limits) from None
    except (OSError, http.client.HTTPException, ValueError):
        copy.compute_seconds_left()
        raise Refusal(422, "unreachable", "the server of the URI does not answer as a web server does") from None


def _check_response(response: http.client.HTTPResponse, limits: Limits) -> None:
    if 300 <= response.status < 400:
        raise Refusal(422, "redirect", "the URI redirects to another one, which is not followed: name that one")
    if response.status != 200:
        raise Refusal(422, "missing", f"the server of the URI answers {response.status}")
    if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise Refusal(422, "compressed", "the server of the URI sends a compressed file though it was asked not to")
    if response.length is not None and response.length > limits.upload_bytes:
        raise make_too_large_refusal(limits)


@contextlib.contextmanager
def _connect(
    scheme: str, host: str, addresses: Sequence[tuple[int, Address]], port: int, copy: _Copy
) -> Iterator[http.client.HTTPConnection]:
    """Connects to the first address that answers. At the deadline of ``copy`` the connection is cut, whatever it waits for."""
    connected = None
    for family, address in addresses[:4]:
        one = socket.socket(family, socket.SOCK_STREAM)
        one.settimeout(min(copy.limits.stall_seconds, copy.compute_seconds_left()))
        try:
            one.connect(address)
        except OSError:
            one.close()
            continue
        connected = one
        break
    seconds = copy.compute_seconds_left()
    if connected is None:
        raise Refusal(422, "unreachable", "the host of the URI does not answer")

    def cut(raw: socket.socket = connected) -> None:
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    connection = http.client.HTTPConnection(host, port)
    try:
        secure = scheme == "https"
        connection.sock = ssl.create_default_context().wrap_socket(connected, server_hostname=host) if secure else connected
        yield connection
    finally:
        timer.cancel()
        connection.close()
        connected.close()
