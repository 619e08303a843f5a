"""The page to try a model, in a real browser with real clips, on a desk and on a phone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from pipeline.serving.in_process import InProcess
from pipeline.serving.model.served_model import ServedModel
from tests.run_folders import CLASSES
from tests.serving.conftest import LIMITS, Running, run_service, save_random_model
from tests.serving.web.test_access import TOKEN

WIDTHS = (1280, 390)
SEVEN = (*CLASSES, "turn", "jump", "wait")
"""More classes than the page shows."""
SEED = 5
"""Of weights that do not give every window of the joined clips the same class."""
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => e.getClientRects().length &&
  !e.closest('.scroll, #bars') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + '#' + e.id)"""
"""Elements that stick out of the window."""
DROP = """([name, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, {type: 'video/mp4'}));
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    const event = new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: transfer});
    document.getElementById('drop').dispatchEvent(event);
  }
}"""
"""Drops a file on the page, as a mouse would."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """A model of seven classes, instead of the room's, which has four."""
    answerer = InProcess(ServedModel(save_random_model(tmp_path_factory.mktemp("seven") / "model", SEVEN, SEED), LIMITS))
    yield answerer
    answerer.stop()


@pytest.fixture(scope="module")
def server(model: InProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without a token that answers by it."""
    with run_service(model, tmp_path_factory.mktemp("scratch") / "uploads") as running:
        yield running


@pytest.fixture(scope="module")
def joined(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four real clips one after the other: 213 frames, 8.52 s."""
    path = tmp_path_factory.mktemp("joined") / "joined.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for name in ("fight/fi001.mp4", "no_fight/nofi148.mp4", "fight/fi003.mp4", "no_fight/nofi150.mp4"):
            with av.open(str(shared_data / "fights" / name)) as clip:
                for frame in clip.decode(video=0):
                    image = frame.to_ndarray(width=320, height=240, format="rgb24")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def pages(browser: Any) -> Iterator[dict[int, Any]]:
    """A page of each width for all tests, because to make one takes longer than most of them."""
    pages = {width: browser.new_page(viewport={"width": width, "height": 900}, has_touch=width < 600) for width in WIDTHS}
    for page in pages.values():
        watch(page)
    yield pages
    for page in pages.values():
        page.close()


def watch(page: Any) -> None:
    """Notes what the page complains of, and whom it asks."""
    page.complaints, page.hosts = [], set()
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda sent: page.hosts.add(re.sub(r"(?<=\d)/.*", "", sent.url)))


@pytest.fixture
def page(pages: dict[int, Any], request: pytest.FixtureRequest) -> Any:
    """An empty page, which must not complain, and must ask the server of the test only."""
    page = pages[getattr(request, "param", 1280)]
    page.goto("about:blank")
    page.complaints, page.hosts = [], set()
    return page


def check_layout(page: Any) -> None:
    """Nothing sticks out of the window, and nothing to be touched is too small for a finger."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OUTSIDE) == []
    assert page.locator("#drop").bounding_box()["height"] >= 120


def list_rows(page: Any, table: str) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts() for row in page.locator(f"#{table} tbody tr").all()]


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_a_clip_that_is_dropped_is_shown_with_its_five_best_classes_both_networks_and_the_timeline(
    page: Any, server: Running, shared_data: Path
) -> None:
    clip = shared_data / "fights" / "fight" / "fi001.mp4"
    page.goto(server.address)
    check_layout(page)
    page.evaluate(DROP, ["fi001.mp4", list(clip.read_bytes())])
    page.locator("#result").wait_for(state="visible", timeout=30_000)
    told = server.post(clip.read_bytes(), "/predict?top=5&window=2s&hop=1s").json
    assert page.locator("#name").inner_text() == "fi001.mp4"
    assert page.locator("#best").inner_text() == told["classes"][0]["name"]
    rows = list_rows(page, "classes")
    assert [row[0] for row in rows] == [one["name"] for one in told["classes"]] and len(rows) == 5 < len(SEVEN)
    for row, one in zip(rows, told["classes"], strict=True):
        assert row[1:] == [f"{100 * one[name]:.1f} %" for name in ("probability", "primary", "auxiliary")]
    said = page.locator("#agreement").inner_text()
    assert told["primary"]["name"] in said and told["auxiliary"]["name"] in said
    assert ("Both networks" in said) == told["agree"]
    segments = list_rows(page, "segments")
    assert [row[2] for row in segments] == [one["name"] for one in told["timeline"]]
    assert page.locator("#bars span").count() == len(segments) >= 1
    assert page.locator("#end").inner_text() == "2.1 s" and "480 x 360" in page.locator("#facts").inner_text()
    box, bars = page.locator("#bars").bounding_box(), page.locator("#bars span").last.bounding_box()
    assert abs(bars["x"] + bars["width"] - box["x"] - box["width"]) < 2  # to the end of the clip
    check_layout(page)
    assert page.complaints == [] and page.hosts <= {server.address, f"blob:{server.address}"}


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_the_segments_of_a_longer_clip_lie_where_they_belong(page: Any, server: Running, joined: bytes) -> None:
    told = server.post(joined, "/predict?top=5&window=2s&hop=1s").json["timeline"]
    assert len(told) > 1 and told[0]["name"] != told[1]["name"]
    page.goto(server.address)
    page.locator("#file").set_input_files({"name": "joined.mp4", "mimeType": "video/mp4", "buffer": joined})
    page.locator("#result").wait_for(state="visible", timeout=30_000)
    assert page.locator("#end").inner_text() == "8.5 s" and "320 x 240" in page.locator("#facts").inner_text()
    times = [f"{told[1][name]:.1f} s" for name in ("start", "end")]
    assert list_rows(page, "segments")[1][:2] == times
    assert [row[2] for row in list_rows(page, "segments")] == [one["name"] for one in told]
    whole, bars = page.locator("#bars").bounding_box(), [bar.bounding_box() for bar in page.locator("#bars span").all()]
    assert len(bars) == len(told)
    for bar, one in zip(bars, told, strict=True):
        assert abs((bar["x"] - whole["x"]) / whole["width"] - one["start"] / 8.52) < 0.02
        assert abs(bar["width"] / whole["width"] - (one["end"] - one["start"]) / 8.52) < 0.02
    check_layout(page)
    assert page.complaints == []


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_a_file_that_is_chosen_without_a_timeline(page: Any, server: Running, clip: bytes) -> None:
    page.goto(server.address)
    page.locator("#timeline").uncheck()
    page.locator("#file").set_input_files({"name": "left.mp4", "mimeType": "video/mp4", "buffer": clip})
    page.locator("#result").wait_for(state="visible", timeout=30_000)
    assert page.locator("#name").inner_text() == "left.mp4"
    assert not page.locator("#when").is_visible()
    assert page.locator("#video").get_attribute("src").startswith("blob:")
    check_layout(page)
    assert page.complaints == []


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_what_is_refused_is_told_and_the_next_clip_is_answered(page: Any, server: Running, clip: bytes) -> None:
    page.goto(server.address)
    name = "<img src=x onerror=alert(1)>" + "very-long-name" * 20 + ".mp4"
    page.locator("#file").set_input_files({"name": name, "mimeType": "video/mp4", "buffer": b"no video at all"})
    page.locator("#status.problem").wait_for()
    assert "the file is in no video format that is accepted" in page.locator("#status").inner_text()
    assert page.locator("#status img").count() == 0 and not page.locator("#result").is_visible()
    check_layout(page)
    page.locator("#file").set_input_files({"name": "b.mp4", "mimeType": "video/mp4", "buffer": bytes(3 * 2**20)})
    page.locator("#status", has_text="more than the 2 MiB that are accepted").wait_for()
    page.locator("#file").set_input_files({"name": "left.mp4", "mimeType": "video/mp4", "buffer": clip})
    page.locator("#result").wait_for(state="visible", timeout=30_000)
    assert page.locator("#status").inner_text() == ""
    assert [text for text in page.complaints if "415" not in text] == []  # the browser's own remark on the status


def test_a_server_with_a_token_asks_for_it(page: Any, model: InProcess, clip: bytes, tmp_path: Path) -> None:
    with run_service(model, tmp_path / "uploads", token=TOKEN) as running:
        page.goto(running.address)
        file = {"name": "left.mp4", "mimeType": "video/mp4", "buffer": clip}
        page.locator("#token").fill("another-token")
        page.locator("#file").set_input_files(file)
        page.locator("#status", has_text="send the server's token").wait_for()
        page.locator("#token").fill(TOKEN)
        page.locator("#file").set_input_files(file)
        page.locator("#result").wait_for(state="visible", timeout=30_000)


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_the_description_of_the_interface_fits_its_window(page: Any, server: Running) -> None:
    page.goto(f"{server.address}/docs")
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.complaints == [] and page.hosts == {server.address}


def test_the_page_can_be_used_by_keyboard(page: Any, server: Running) -> None:
    """The file chooser opens by the keyboard, and what has the focus is seen."""
    choosers: list[Any] = []
    # long before the key, because nothing says when the browser knows that it is to tell
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.goto(server.address)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # drawn: keys count now
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    page.keyboard.press("Space")
    deadline = time.monotonic() + 30
    while not choosers:
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
