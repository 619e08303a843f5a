"""Who may ask: the token, and what protects a server without one from web pages that the user of its machine visits."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from pipeline.errors import UserError
from pipeline.serving.requests.limits import Refusal

TOKEN_VARIABLE = "ACTNETFORMER_TOKEN"
TOKEN_LENGTH = 16
"""Fewest characters of a token."""
OPEN_PATHS = ("/", "/page.css", "/page.js", "/docs", "/openapi.json", "/livez", "/readyz", "/-/healthz")
"""What is answered without a token: the page, which asks for it, and the description, to which browsers could not send one,
and health. They tell the model's name, its classes' number and the limits."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]


def read_token(file: Path | None) -> str | None:
    """Reads the token from a file, or else from the environment; None if there is none. Raises UserError for a bad one."""
    where = TOKEN_VARIABLE if file is None else f"--token-file {file}"
    try:
        token = os.environ.get(TOKEN_VARIABLE) if file is None else file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if token is None or (file is None and not token):
        return None
    token = token.strip()
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{where} must hold at least {TOKEN_LENGTH} characters of ASCII without spaces; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def take_token(file: Path | None) -> str | None:
    """Reads the token as ``read_token`` does, and takes it out of the environment, which processes that decode get, too."""
    token = read_token(file)
    os.environ.pop(TOKEN_VARIABLE, None)
    return token


def is_loopback(host: str) -> bool:
    """Whether a host to listen on can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_token(host: str, token: str | None) -> None:
    """Raises UserError if the server would answer other machines without a token."""
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} answers other machines, which needs a token: put one into the environment variable "
            f"{TOKEN_VARIABLE} or into a file (--token-file); clients send it as 'Authorization: Bearer TOKEN'. Without one, "
            "--host 127.0.0.1 answers this machine alone"
        )


def _split_host(text: str) -> tuple[str, str]:
    """Returns ``HOST:PORT``, or ``HOST`` without a port, in lower case, and the host alone; empty texts for what is neither."""
    try:
        parts = urlsplit(f"//{text}")
        return parts.netloc.lower(), parts.hostname or ""
    except ValueError:  # brackets that hold no IPv6 address
        return "", ""


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    token: str | None = None
    """What clients must send as ``Authorization: Bearer TOKEN``; None: nothing, because the server listens on loopback."""

    def check(self, path: str, headers: Headers) -> None:
        """Raises Refusal if a request may not be answered."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and _split_host(origin.partition("://")[2])[0] != host.lower():
            raise Refusal(403, "origin", "a page of another site may not ask this server")
        if self.token is None:
            if not is_loopback(_split_host(host)[1]):  # a name that somebody else makes mean this machine: DNS rebinding
                raise Refusal(403, "host", "without a token this server answers as localhost or 127.0.0.1 only")
        elif path not in OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_known = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not is_known:
                raise Refusal(401, "token", "send the server's token as 'Authorization: Bearer TOKEN'")
