"""Serves the labeling page to this machine alone, and saves each answer as it is given."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files.folder_lock import lock_file
from pipeline.manifest.labeling_answers import COLUMNS, STATUSES, LabelAnswer, merge_answers, read_answers
from pipeline.manifest.schema import Manifest
from pipeline.report.loopback import HOST, LoopbackHandler, open_port
from pipeline.report.parts.html import write_file

MAX_BYTES = 16_384
"""Largest size of an answer that the page sends."""


class AnswerFile:
    """The file of answers, which is written again, completely or not at all, with each answer.

    Hold ``lock_answers`` while it is used.
    """

    def __init__(self, path: Path, run: str, manifest: Manifest, ids: frozenset[str]) -> None:
        """Continues with the answers that the file has; ``ids`` are the videos that can be answered.

        Raises UserError if the answers are of another manifest, or have columns that would be lost.
        """
        self.path, self.run, self.manifest, self.ids = path, run, manifest, ids
        self.id = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        """16 hexadecimal digits by which browsers know the file again."""
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._lines: list[LabelAnswer] = []
        self._refresh()

    def list_answers(self) -> list[LabelAnswer]:
        """Lists one answer for each video. Raises UserError if somebody wrote into the file what is not understood."""
        with self._lock:
            self._refresh()
            return list(merge_answers(self._lines).values())

    def take(self, words: Mapping[str, object]) -> str:
        """Saves an answer, or takes one back if its status is empty. Returns what is wrong with it, or ""."""
        texts = {key: words.get(key) for key in ("id", "status", "answer", "by", "at")}
        if not all(isinstance(text, str) and len(text) < 2000 for text in texts.values()):
            return "id, status, answer, by and at must be texts"
        values = {key: str(text) for key, text in texts.items()}
        if any(ord(letter) < 32 for letter in values["by"] + values["at"]):
            return "by and at must be texts of one line"
        if values["id"] not in self.ids:
            return f"{values['id']} is none of the suggested videos"
        if values["status"] not in (*STATUSES, ""):
            return f"status {values['status']} is not known"
        if values["status"] == "class" and values["answer"] not in self.manifest.classes:
            if words.get("isNew") is not True:
                return f"class {values['answer']} is not known"
            if not values["answer"].isprintable() or values["answer"] != values["answer"].strip() or not values["answer"]:
                return "a new class must be a name of one line without spaces around it"
        label = values["answer"] if values["status"] == "class" else ""
        new = LabelAnswer(
            values["id"], values["status"], label, values["by"], values["at"], self.run, self.manifest.fingerprint
        )
        with self._lock:
            try:
                self._refresh()
                lines = [line for line in self._lines if line.id != new.id or _is_agreement(line, new)]
                lines += [new] if new.status else []
                text = format_answers(lines)
                write_file(text, self.path, "--answers")
            except UserError as error:
                return str(error)
            self._lines, self._content = lines, text.encode()
        return ""

    def _refresh(self) -> None:
        """Reads the file again if somebody has edited it. A file that was removed will be written again."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"--answers {self.path} cannot be read: {error.strerror}") from None
        if content == self._content:
            return
        lines = read_answers(self.path, self.manifest)
        if other := [line.id for line in lines if line.manifest not in ("", self.manifest.fingerprint)]:
            raise UserError(f"{self.path} has answers of another manifest ({other[0]}, ...): name another file with --answers")
        head = next(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        if lost := [name for name in head if name not in COLUMNS]:
            raise UserError(
                f"{self.path} has the columns {', '.join(lost)}, which would be lost: name another file with --answers"
            )
        self._lines, self._content = lines, content


def _is_agreement(line: LabelAnswer, new: LabelAnswer) -> bool:
    """Whether an earlier line about the same video is another person's, and says the same."""
    return line.by != new.by and (line.status, line.label) == (new.status, new.label)


@contextlib.contextmanager
def lock_answers(path: Path) -> Iterator[None]:
    """Makes this process the only one that serves answers into a file. Raises FolderInUse if another one does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--answers {path} cannot be written: {error.strerror}") from None
    remedy = "stop it, or name another file with --answers"
    with lock_file(path.with_name(f".{path.name}.lock"), f"--answers {path}", remedy=remedy):
        yield


def format_answers(answers: Iterable[LabelAnswer]) -> str:
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
    return open_port(lambda: _AnswerServer(port, token, render(token).encode(), answers), port, "--serve")


class _AnswerServer(ThreadingHTTPServer):
    """A server on loopback with what its handlers need: the page, its token, and the file of answers."""

    def __init__(self, port: int, token: str, page: bytes, answers: AnswerFile) -> None:
        self.token, self.page, self.answers = token, page, answers
        super().__init__((HOST, port), _Handler)


class _Handler(LoopbackHandler):
    """Answers the page's requests, and nobody else's."""

    server: _AnswerServer

    def answer_get(self) -> None:
        if self.path == "/":
            self.reply(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/answers" and self._has_token():
            try:
                known = self.server.answers.list_answers()
            except UserError as error:
                self.reply(500, str(error).encode(), "text/plain; charset=utf-8")
                return
            saved = [(a.id, {"status": a.status, "answer": a.label, "by": a.by, "at": a.at}) for a in known]
            self.reply(200, json.dumps(saved).encode(), "application/json")
        else:
            self.reply(404, b"there is only /", "text/plain")

    def answer_post(self) -> None:
        if self.path != "/answers" or not self._has_token():
            self.reply(403, b"open the page again: it belongs to a server that has ended", "text/plain")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            self.reply(413, b"an answer is shorter", "text/plain")
            return
        try:
            words = json.loads(self.rfile.read(int(length)))
            problem = self.server.answers.take(words) if isinstance(words, dict) else "an answer is an object"
        except ValueError:
            problem = "an answer is JSON"
        self.reply(400 if problem else 200, (problem or "saved").encode(), "text/plain; charset=utf-8")

    def _has_token(self) -> bool:
        return secrets.compare_digest(self.headers.get("X-Token", "").encode(), self.server.token.encode())
