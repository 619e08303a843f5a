"""Receives uploads into files on disk: raw bodies and forms, within limits of bytes and time, and with little memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.requests import Request

from pipeline.serving.requests.limits import Limits, Refusal, make_too_large_refusal, make_too_slow_refusal
from pipeline.serving.requests.option_names import check_names
from pipeline.serving.requests.read_form import save_file_of_form
from pipeline.serving.requests.scratch import Scratch

Message = MutableMapping[str, Any]
JSON_BYTES = 16 * 1024
"""Largest JSON body."""
DRAIN_SECONDS = 2.0
"""How long the rest of a refused upload is read and thrown away. A client that still sends would otherwise see a broken
connection instead of the answer."""
FORM, JSON = "multipart/form-data", "application/json"


class LimitedBody:
    """The ``receive`` of an ASGI request, which raises Refusal when too many bytes come, or none for ``stall_seconds``."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], limits: Limits, most_bytes: int | None = None) -> None:
        self.receive, self.limits = receive, limits
        self.most_bytes = limits.upload_bytes if most_bytes is None else most_bytes
        self.bytes = 0
        self.has_ended = False

    async def __call__(self) -> Message:
        """Returns the next message of the request."""
        try:
            async with asyncio.timeout(self.limits.stall_seconds):
                message = await self.receive()
        except TimeoutError:
            raise make_too_slow_refusal(self.limits) from None
        self.bytes += len(message.get("body", b""))
        self.has_ended = not message.get("more_body", False)
        if self.bytes > self.most_bytes:
            raise make_too_large_refusal(self.limits)
        return message


async def drain(receive: Callable[[], Awaitable[Message]]) -> bool:
    """Reads a request on to its end for at most ``DRAIN_SECONDS``, and keeps nothing. Returns whether it has ended."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    return True
    return False


def get_content_type(request: Request) -> str:
    """Returns the media type of a request's body, without parameters and in lower case; "" if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_headers(request: Request, limits: Limits) -> None:
    """Raises Refusal if the headers alone tell that the body cannot be taken. Only a ``Content-Length`` is believed here that
    is too large; the bytes are counted as they come."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(415, "compressed", f"the body has Content-Encoding {encoding[:40]}: send the file as it is")
    kind = get_content_type(request)
    if not (kind in ("", "application/octet-stream", FORM, JSON) or kind.startswith("video/")):
        text = f"Content-Type {kind[:80]}: send a video file as the body (video/* or application/octet-stream) or as the file "
        raise Refusal(415, "content_type", text + 'of a form (multipart/form-data), or JSON such as {"uri": "https://..."}')
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.upload_bytes + JSON_BYTES:  # a form has some lines around the file
        raise make_too_large_refusal(limits)


@contextlib.asynccontextmanager
async def receive_body(request: Request, limits: Limits) -> AsyncIterator[Request]:
    """Yields the request with a limited body. If it is refused, the rest of the body is thrown away first."""
    kind = get_content_type(request)
    extra = JSON_BYTES if kind == FORM else 0
    body = LimitedBody(request.receive, limits, JSON_BYTES if kind == JSON else limits.upload_bytes + extra)
    try:
        check_headers(request, limits)
        yield Request(request.scope, body)
    except Refusal as refusal:
        # a client that sends nothing, or waits for leave to send, needs no draining
        is_sending = refusal.status != 408 and not ("expect" in request.headers and body.bytes == 0)
        if body.has_ended or (is_sending and await drain(request.receive)):
            raise
        raise refusal.end_connection() from None


async def save_upload(request: Request, path: Path, scratch: Scratch) -> None:
    """Writes the file that a request uploads to ``path``, which lies in ``scratch``. Raises Refusal, also for what is not a
    form with one file.

    The request is one of ``receive_body``. Pieces are written as they come, so that memory holds only one of them.
    """
    with scratch.refuse_errors(), path.open("wb") as file:
        if get_content_type(request) == FORM:
            await save_file_of_form(request, file)
        else:
            async for piece in request.stream():
                file.write(piece)
    if path.stat().st_size == 0:
        raise Refusal(400, "empty", "the body has no bytes: send a video file")


async def read_uri(request: Request) -> str:
    """Reads ``{"uri": "..."}``. Raises Refusal if the body is anything else."""
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refusal(400, "json", "the body is not JSON") from None
    if isinstance(content, dict):
        check_names(content, ("uri",), "key of the JSON")
    if not isinstance(content, dict) or not isinstance(content.get("uri"), str):
        raise Refusal(400, "json", 'the body must be {"uri": "..."}')
    uri: str = content["uri"]
    return uri
