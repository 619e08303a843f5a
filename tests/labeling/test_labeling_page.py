"""The labeling page in a real browser, from its first key to the file of answers, and the server that saves them."""

from __future__ import annotations

import csv
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.clips.source import VideoSource
from pipeline.errors import UserError
from pipeline.labeling.answer_server import HOST, AnswerFile, start_server
from pipeline.labeling.labeling_page import render_labeling_page
from pipeline.labeling.small_clips import SmallClip, encode_animation
from pipeline.labeling.suggest import Suggestion, Suggestions
from pipeline.manifest.labeling_answers import read_answers
from pipeline.manifest.schema import SCHEMA, Manifest

CLASSES = ("clap, twice", "wave", "</script><b>jump")


@pytest.fixture
def suggestions(tmp_path: Path) -> Suggestions:
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 32, 3), dtype=np.uint8)
    clip = SmallClip(encode_animation(frames, 100), np.zeros(192, np.bool_))
    gone = SmallClip("", np.zeros(0, np.bool_), "no such file")
    videos = tuple(
        Suggestion(
            row, f"v/{row}", f"v/{row}.mp4", 0.5, "the students disagree", (CLASSES[0], 0.6), (CLASSES[1], 0.7),
            tuple((name, 0.5 - 0.1 * index) for index, name in enumerate(CLASSES)), gone if row == 2 else clip,
        )
        for row in range(4)
    )  # fmt: skip
    manifest = Manifest(SCHEMA.empty_table(), CLASSES, "", "test", "0123456789abcdef", "m.parquet")
    source = VideoSource(manifest, None, (None, None), 32)  # type: ignore[arg-type]
    return Suggestions(tmp_path / "first", source, "labels.parquet", videos, ("a note",))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


def open_page(browser: Any, address: str, width: int = 1280) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    return page, complaints


def wait_for_text(page: Any, element: str, text: str) -> None:
    page.locator(element, has_text=text).wait_for(timeout=10_000)


@pytest.mark.parametrize("width", [1280, 390])
def test_keys_and_buttons_answer_and_nothing_is_lost_on_reload(
    browser: Any, suggestions: Suggestions, tmp_path: Path, width: int
) -> None:
    file = tmp_path / "label.html"
    file.write_text(render_labeling_page(suggestions), encoding="utf-8")
    page, complaints = open_page(browser, file.as_uri(), width)
    assert page.evaluate("document.getElementById('clip').naturalWidth") == 32
    page.fill("#by", "Ana, B.")
    page.dispatch_event("#by", "change")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    assert "video 2 of 4, 1 answered" in page.inner_text("#position")
    page.click("#answers button:nth-of-type(3)")
    assert "cannot be shown: no such file" in page.inner_text("#about")
    page.keyboard.press("b")
    page.reload()
    assert "video 4 of 4, 3 answered" in page.inner_text("#position")
    page.select_option("#class", label="wave")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")
    page.keyboard.press("s")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "answers.csv")
    found = [(answer.id, answer.status, answer.label) for answer in read_answers(tmp_path / "answers.csv")]
    assert found == [
        ("v/0", "class", CLASSES[0]), ("v/1", "class", CLASSES[2]), ("v/2", "skipped", ""), ("v/3", "class", "wave"),
    ]  # fmt: skip
    first = read_answers(tmp_path / "answers.csv")[0]
    assert (first.by, first.run, first.manifest) == ("Ana, B.", "first", "0123456789abcdef") and first.at.endswith("Z")
    assert complaints == []
    page.close()


@pytest.fixture
def server(suggestions: Suggestions, tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, AnswerFile, list[str]]]:
    tokens: list[str] = []

    def render(token: str) -> str:
        tokens.append(token)
        return render_labeling_page(suggestions, token)

    answers = AnswerFile(
        tmp_path / "answers.csv", "first", "0123456789abcdef", frozenset(f"v/{row}" for row in range(4)), frozenset(CLASSES)
    )
    with start_server(render, answers, 0) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running, answers, tokens
        running.shutdown()
        thread.join()


def test_each_answer_is_in_the_file_before_the_page_says_so(browser: Any, server: Any, tmp_path: Path) -> None:
    running, answers, _ = server
    page, complaints = open_page(browser, f"http://{HOST}:{running.server_port}/")
    page.keyboard.press("2")
    wait_for_text(page, "#saved", "saved 1 of 4")
    assert [(one.id, one.label) for one in read_answers(tmp_path / "answers.csv")] == [("v/0", "wave")]
    page.keyboard.press("n")
    wait_for_text(page, "#saved", "saved 2 of 4")
    page.close()
    other = browser.new_context().new_page()  # another browser, which remembers nothing
    other.goto(f"http://{HOST}:{running.server_port}/")
    wait_for_text(other, "#position", "video 3 of 4, 2 answered")
    other.keyboard.press("ArrowLeft")
    other.keyboard.press("u")
    wait_for_text(other, "#saved", "saved 1 of 4")
    assert [one.id for one in answers.answers.values()] == ["v/0"]
    assert complaints == []
    other.close()


def ask(running: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, running.server_port, timeout=10)
    connection.request(
        method, path, body if body is None else json.dumps(body), {k.replace("_", "-"): v for k, v in headers.items()}
    )
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_nobody_but_the_page_is_listened_to(server: Any, tmp_path: Path) -> None:
    running, answers, (token,) = server
    good = {"id": "v/0", "status": "class", "answer": "wave", "by": "", "at": ""}
    assert ask(running, "POST", "/answers", good)[0] == 403
    assert ask(running, "POST", "/answers", good, X_Token="wrong")[0] == 403
    assert ask(running, "POST", "/answers", good, X_Token=token, Host="attacker.example")[0] == 403
    assert ask(running, "GET", "/", Host="attacker.example")[0] == 403
    assert ask(running, "GET", "/answers")[0] == 404 and ask(running, "GET", "/../first")[0] == 404
    assert ask(running, "POST", "/answers", good | {"by": "x" * 20_000}, X_Token=token)[0] == 413
    for wrong in ({"id": "v/9"}, {"status": "perhaps"}, {"answer": "sing"}, {"at": 3}):
        assert ask(running, "POST", "/answers", good | wrong, X_Token=token)[0] == 400
    assert ask(running, "POST", "/answers", [good], X_Token=token)[0] == 400
    assert answers.answers == {} and not (tmp_path / "answers.csv").exists()
    assert ask(running, "POST", "/answers", good, X_Token=token) == (200, b"saved")
    with (tmp_path / "answers.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["wave"]


def test_a_server_goes_on_with_earlier_answers_and_not_with_another_manifests(tmp_path: Path) -> None:
    path, ids = tmp_path / "answers.csv", frozenset(["v/0", "v/1"])
    first = AnswerFile(path, "first", "0123456789abcdef", ids, frozenset(CLASSES))
    assert first.take({"id": "v/1", "status": "class", "answer": CLASSES[0], "by": "", "at": ""}) == ""
    assert AnswerFile(path, "first", "0123456789abcdef", ids, frozenset(CLASSES)).answers == first.answers
    with pytest.raises(UserError, match="of another manifest"):
        AnswerFile(path, "first", "f" * 16, ids, frozenset(CLASSES))
    with start_server(lambda token: "", first, 0) as one, pytest.raises(UserError, match="cannot be used"):
        start_server(lambda token: "", first, one.server_port)
