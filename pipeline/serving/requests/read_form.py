"""Reads the one file of a form as it comes. Starlette's own reader keeps files in the system's temporary folder first."""

from __future__ import annotations

from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from pipeline.serving.requests.limits import Refusal
from pipeline.serving.requests.option_names import check_names

HEADER_BYTES = 8 * 1024
"""Bytes of the headers of a part, at most."""

NO_FILE = "the form has no file: send the video as a part with a filename"


class _FileOfForm:
    """Writes the part that is a file, and refuses all other ones."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.has_file = self.has_ended = False
        self._name, self._value, self._headers = bytearray(), bytearray(), dict[bytes, bytes]()
        self._bytes = 0

    def on_part_begin(self) -> None:
        self._headers, self._bytes = {}, 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += self._count(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._count(data[start:end])

    def on_header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"filename" not in options:
            name = options.get(b"name", b"").decode("utf-8", "replace")
            if name in ("", "file"):
                raise Refusal(400, "form", NO_FILE)
            check_names([name], (), "field of the form")
        if self.has_file:
            raise Refusal(400, "form", "the form has more than one file: send one video in a request")
        self.has_file = True

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.file.write(data[start:end])

    def on_end(self) -> None:
        self.has_ended = True

    def _count(self, piece: bytes) -> bytes:
        self._bytes += len(piece)
        if self._bytes > HEADER_BYTES:
            raise Refusal(400, "form", f"a part of the form has more than {HEADER_BYTES} bytes of headers")
        return piece


async def save_file_of_form(request: Request, file: BinaryIO) -> None:
    """Writes the content of the only file of a form to ``file``. Raises Refusal if the form has none, or anything else."""
    part = _FileOfForm(file)
    _, parameters = parse_options_header(request.headers["content-type"])
    names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
    callbacks: Any = {f"on_{name}": getattr(part, f"on_{name}") for name in names}
    if not parameters.get(b"boundary"):
        raise Refusal(400, "form", "the form cannot be read: its Content-Type has no boundary")
    try:
        parser = MultipartParser(parameters[b"boundary"], callbacks)
        async for piece in request.stream():
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "form", f"the form cannot be read: {str(error)[:200]}") from None
    if not part.has_file:
        raise Refusal(400, "form", NO_FILE)
    if not part.has_ended:
        raise Refusal(400, "form", "the form breaks off before its last boundary")
