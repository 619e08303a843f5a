"""Serves the labeling page to this machine alone, and saves each answer as it is given."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest.labeling_answers import COLUMNS, STATUSES, Answer, read_answers
from pipeline.report.html import write_file

HOST = "127.0.0.1"
MAX_BYTES = 16_384
"""Of an answer that is sent."""


class AnswerFile:
    """The file of answers, which is written again, completely or not at all, with each answer."""

    def __init__(self, path: Path, run: str, manifest: str, ids: frozenset[str], classes: frozenset[str]) -> None:
        """Goes on with the answers that the file has. Raises UserError if they are of another manifest."""
        self.path, self.run, self.manifest, self.ids, self.classes = path, run, manifest, ids, classes
        self._lock = threading.Lock()
        self.answers = {answer.id: answer for answer in read_answers(path)} if path.exists() else {}
        if other := [answer.id for answer in self.answers.values() if answer.manifest not in ("", manifest)]:
            raise UserError(f"{path} has answers of another manifest ({other[0]}, ...): name another file with --answers")

    def take(self, words: Mapping[str, object]) -> str:
        """Saves an answer, or takes one back if its status is empty. Returns what is wrong with it, or ""."""
        texts = {key: words.get(key) for key in ("id", "status", "answer", "by", "at")}
        if not all(isinstance(text, str) and len(text) < 2000 for text in texts.values()):
            return "id, status, answer, by and at must be texts"
        values = {key: str(text) for key, text in texts.items()}
        if values["id"] not in self.ids:
            return f"{values['id']} is none of the suggested videos"
        if values["status"] not in (*STATUSES, ""):
            return f"status {values['status']} is not known"
        if values["status"] == "class" and values["answer"] not in self.classes:
            return f"class {values['answer']} is not known"
        with self._lock:
            changed = dict(self.answers)
            changed.pop(values["id"], None)
            if values["status"]:
                label = values["answer"] if values["status"] == "class" else ""
                changed[values["id"]] = Answer(
                    values["id"], values["status"], label, values["by"], values["at"], self.run, self.manifest
                )
            try:
                write_file(format_answers(changed.values()), self.path, "--answers")
            except UserError as error:
                return str(error)
            self.answers = changed
        return ""


def format_answers(answers: Iterable[Answer]) -> str:
    """Formats answers as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for answer in answers:
        writer.writerow([getattr(answer, "label" if name == "class" else name) for name in COLUMNS])
    return buffer.getvalue()


def start_server(render: Callable[[str], str], answers: AnswerFile, port: int) -> ThreadingHTTPServer:
    """Starts to listen on this machine's loopback address; call ``serve_forever``. Raises UserError if the port is taken.

    ``render`` makes the page with the token that every answer must carry, so that no other page in the browser can send one.
    """
    token = secrets.token_urlsafe(24)
    page = render(token).encode()

    class Handler(BaseHTTPRequestHandler):
        """Answers the page's requests, and nobody else's."""

        timeout = 30

        def do_GET(self) -> None:
            if not self._is_local():
                return
            if self.path == "/":
                self._reply(200, page, "text/html; charset=utf-8")
            elif self.path == "/answers" and self._has_token():
                saved = [(a.id, {**{k: v for k, v in asdict(a).items() if k in ("status", "by", "at")}, "answer": a.label})
                         for a in answers.answers.values()]  # fmt: skip
                self._reply(200, json.dumps(saved).encode(), "application/json")
            else:
                self._reply(404, b"there is only /", "text/plain")

        def do_POST(self) -> None:
            if not self._is_local():
                return
            if self.path != "/answers" or not self._has_token():
                self._reply(403, b"open the page again: it belongs to a server that has ended", "text/plain")
                return
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > MAX_BYTES:
                self._reply(413, b"an answer is shorter", "text/plain")
                return
            try:
                words = json.loads(self.rfile.read(int(length)))
                problem = answers.take(words) if isinstance(words, dict) else "an answer is an object"
            except ValueError:
                problem = "an answer is JSON"
            self._reply(400 if problem else 200, (problem or "saved").encode(), "text/plain; charset=utf-8")

        def _is_local(self) -> bool:
            """Whether the browser was sent here by this machine's address; a foreign name that leads here is refused."""
            host = self.headers.get("Host", "")
            if host in (f"{HOST}:{server.server_port}", f"localhost:{server.server_port}"):
                return True
            self._reply(403, b"not by this name", "text/plain")
            return False

        def _has_token(self) -> bool:
            return secrets.compare_digest(self.headers.get("X-Token", "").encode(), token.encode())

        def _reply(self, code: int, body: bytes, kind: str) -> None:
            self.send_response(code)
            for name, value in {
                "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Logs nothing: the terminal shows the address."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"port {port} of {HOST} cannot be used ({why}): name another with --serve PORT") from None
    return server
