"""The site in a real browser: it fits, follows the reader's scheme, finds words, and stays on this machine."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PAGES = ("index.html", "tutorials/own_videos.html", "tour.html", "method.html", "configuration.html", "results.html")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing of each request."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: a file cannot start the worker of its search."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def open_page(browser: Any, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
    """A page of the browser, and the lists of what it asks for and of the errors that it tells."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(100_000)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return page, asked, errors


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_fit_their_window_and_stay_at_home(browser: Any, address: str, width: int, scheme: str) -> None:
    page, asked, errors = open_page(browser, width, scheme)
    for name in PAGES:
        page.goto(address + name, wait_until="load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) > 3 * 128) == (scheme == "light"), (name, background)
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == [] and len(asked) > len(PAGES)
    assert errors == []
    page.close()


@pytest.mark.timeout(400)
def test_pictures_follow_the_scheme_that_a_reader_chooses(browser: Any, address: str) -> None:
    page, _, _ = open_page(browser, 1280, "light")
    page.goto(address + "method.html", wait_until="load")
    brightness = []
    for title in ("light", "dark"):  # each click chooses the next scheme; the first page follows the system, which is light
        page.click("label.md-header__button[for^=__palette]:not([hidden])")
        page.wait_for_timeout(300)
        picture = page.locator("img[src='method.svg']").screenshot()
        brightness.append((title, np.asarray(Image.open(io.BytesIO(picture)).convert("L")).mean()))
    assert brightness[0][1] > 200 and brightness[1][1] < 80, brightness
    page.close()


@pytest.mark.timeout(400)
def test_the_search_finds_a_word(browser: Any, address: str) -> None:
    page, asked, _ = open_page(browser, 1280, "light")
    page.goto(address + "index.html", wait_until="load")
    page.wait_for_function("document.querySelector('.md-search-result__meta').textContent.includes('Type to start')")
    page.click("input[name=query]")
    page.locator("input[name=query]").press_sequentially("quarantine.parquet")  # the search listens to keys
    page.wait_for_selector(".md-search-result__item a")
    assert "training.html" in " ".join(page.eval_on_selector_all(".md-search-result__item a", "all => all.map(a => a.href)"))
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    page.close()
