"""What one request may cost, and how a request is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import UserError

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What a request may cost. All of it is checked before the work that it would cost is begun, or while it is done."""

    upload_bytes: int = 64 * MEBIBYTE
    """Largest upload, and largest file behind a URI."""
    upload_seconds: float = 60.0
    """Time from the headers of a request until its file has arrived whole, be it an upload or a file behind a URI."""
    stall_seconds: float = 10.0
    """Longest time between two pieces of such a file."""
    video_seconds: float = 120.0
    """Longest video."""
    video_pixels: int = 4096 * 2304
    """Largest frame: width times height."""
    video_frames: int = 20_000
    """Most frames of a video."""
    windows: int = 600
    """Most windows of a timeline."""
    request_seconds: float = 60.0
    """Time for an answer, from the end of the upload."""
    waiting: int = 32
    """Most requests whose upload has arrived and that have no answer yet."""
    uploads: int = 64
    """Most uploads that arrive at the same time. Each may take ``upload_bytes`` of disk space, and some kilobytes of memory."""
    decoder_bytes: int = 1024 * MEBIBYTE
    """Memory of a process that inspects or decodes."""
    decoded_bytes: int = 1024 * MEBIBYTE
    """Memory of decoded frames that wait to be scored, of all requests together."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise UserError(f"the limit {name} must be a number above 0, found {value}")


class Refusal(Exception):
    """A request that is not answered with a prediction.

    ``status`` is the HTTP status, ``code`` names the reason in a word, ``text`` in a sentence for whoever made the request.
    ``retry_after`` are the seconds after which the same request may succeed, or 0. ``ends_connection`` says whether a part of
    the request was not read, so that nothing else can come through its connection.
    """

    def __init__(self, status: int, code: str, text: str, retry_after: int = 0, ends_connection: bool = False) -> None:
        # as arguments, so that it is the same on the other side of a process
        super().__init__(status, code, text, retry_after, ends_connection)
        self.status, self.code, self.text, self.retry_after = status, code, text, retry_after
        self.ends_connection = ends_connection

    def end_connection(self) -> Refusal:
        """Returns the same refusal, after which the connection is closed."""
        return Refusal(self.status, self.code, self.text, self.retry_after, ends_connection=True)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.text}"


def make_too_large_refusal(limits: Limits) -> Refusal:
    """Makes the refusal of an upload that has too many bytes."""
    return Refusal(413, "too_many_bytes", f"the file is larger than {limits.upload_bytes / MEBIBYTE:g} MiB")


def make_too_slow_refusal(limits: Limits) -> Refusal:
    """Makes the refusal of an upload that does not arrive in time."""
    text = f"the file paused for {limits.stall_seconds:g} s, or had not arrived after {limits.upload_seconds:g} s"
    return Refusal(408, "too_slow", text)


def make_too_late_refusal(limits: Limits) -> Refusal:
    """Makes the refusal of a request that could not be answered in time."""
    text = f"there was no answer within {limits.request_seconds:g} s: the video is costly to decode, or the server is busy"
    return Refusal(504, "too_late", text)


def make_busy_refusal(seconds: float) -> Refusal:
    """Makes the refusal of a request for which there is no room, and which may come again after ``seconds``."""
    text = "too many requests wait for their answer: try again later"
    return Refusal(503, "busy", text, retry_after=max(1, math.ceil(seconds)))
