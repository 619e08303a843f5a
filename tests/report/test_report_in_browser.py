"""The report's pages, opened in a real browser: what fits, what can be read, sorted and printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.manifest.schema import Manifest
from pipeline.report.pages.label_report import write_label_report
from pipeline.report.report import Report, write_report
from tests.report.test_report import MAX_BYTES, PAGES
from tests.run_folders import evaluate_on_other_data
from tests.study_folders import write_population, write_scores

WIDTHS = (1280, 390)

PLOTS = {
    "single": 12 + 3 + 1, "several": 12 + 3 + 3 + 2, "contrast_weight": 12 + 3 + 3 + 4, "frame_rate": 12 + 3 + 3 + 4,
    "rates": 12 + 4 + 3 + 1,
}  # fmt: skip
"""Training curves, responses or pictures of a search, three reliability curves, and confusion matrices."""
ESCAPES = """() => [...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect(), around = svg.closest('figure').getBoundingClientRect();
  const inside = box.left >= around.left - 1 && box.bottom <= around.bottom + 1 &&
    (box.right <= around.right + 1 || !!svg.closest('.wide'));
  const cut = [...svg.querySelectorAll('text')].filter(text => {
    const t = text.getBoundingClientRect();
    return t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 || t.bottom > box.bottom + 1;
  }).map(text => text.textContent);
  return {name: svg.getAttribute('aria-label'), width: box.width, height: box.height, inside, cut};
})"""
CLIPPED = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && !e.closest('.scroll, .wide') &&
  !e.closest('details:not([open])') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + '.' + e.className)"""
OVERLAPS = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([text, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.45 *
    Math.min(a.height, b.height)).map(([other]) => svg.getAttribute('aria-label') + ': ' + text + ' / ' + other));
})"""
"""Texts of a picture that lie on each other."""


@pytest.fixture(scope="module")
def only_page(browser: Any) -> Iterator[Any]:
    """A page for all tests of this file, because to make one takes longer than to read a report."""
    page = browser.new_page()
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    yield page
    page.close()


@pytest.fixture
def page(only_page: Any) -> Any:
    """The page, empty, on a screen, in the light scheme, and without what it complained of and asked for before."""
    only_page.complaints, only_page.requests = [], []
    only_page.goto("about:blank")
    only_page.set_viewport_size({"width": 1280, "height": 900})
    only_page.emulate_media(media="screen", color_scheme="light")
    only_page.complaints, only_page.requests = [], []
    return only_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_the_page_fits_its_window_and_stays_at_home(
    page: Any, reports: dict[str, Report], name: str, width: int, scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    address = reports[name].path.as_uri()
    page.goto(address)
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [address]
    assert check_layout(page) == PLOTS[name]
    broken = "[...document.images].filter(image => !image.complete || image.naturalWidth < 32).length"
    assert page.locator("img").count() >= 24 and page.evaluate(broken) == 0


def check_layout(page: Any) -> int:
    """Nothing sticks out, is cut off or lies on another text, as the page is and with all opened; returns how many pictures."""
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.evaluate(CLIPPED) == []
        plots = page.evaluate(ESCAPES)
        for plot in plots:
            assert plot["inside"] and plot["width"] > 100 and plot["height"] > 60 and plot["cut"] == [], plot
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate(OVERLAPS) == []
    return len(plots)


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, write_run: Any) -> dict[str, Path]:
    """Pages of a run that saved scores, of these scores alone, of a run that has results of other data, too, and of a
    population."""
    parent = tmp_path_factory.mktemp("further")
    folder = write_run(parent, manifest)
    generator = torch.Generator().manual_seed(0)
    scores = {name: (3 * torch.randn(60, 4, generator=generator)).softmax(dim=1) for name in ("primary", "auxiliary")}
    write_scores(folder, torch.randint(-1, 4, (60,), generator=generator), scores, steps=30)
    other = write_run(parent / "other", manifest)
    evaluate_on_other_data(other, manifest, keep_own=True)
    return {
        "labels": write_report([folder]).path,
        "other_data": write_report([other]).path,
        "label_quality": write_label_report([folder]).files[-1],
        "population": write_report([write_population(parent / "pbt")]).path,
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["labels", "label_quality", "other_data", "population"])
def test_pages_of_labels_and_populations_fit_their_window_too(
    page: Any, further: dict[str, Path], name: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(further[name].as_uri())
    assert check_layout(page) >= {"labels": 20, "label_quality": 8, "other_data": 20, "population": 1}[name]
    assert page.complaints == []


@pytest.mark.parametrize("name", [*PAGES, "labels"])
def test_print_shows_what_is_folded_and_no_table_is_cut(
    page: Any, reports: dict[str, Report], further: dict[str, Path], name: str
) -> None:
    """A4 between Chromium's margins is 718 px wide."""
    page.set_viewport_size({"width": 718, "height": 1000})
    page.emulate_media(media="print")
    page.goto((further[name] if name in further else reports[name].path).as_uri())
    folded = "[...document.querySelectorAll('details:not([open]) > :not(summary)')]"
    assert page.evaluate(f"{folded}.length") > 0
    hidden = f"{folded}.filter(e => !e.checkVisibility({{contentVisibilityAuto: true}}) || !e.getBoundingClientRect().height)"
    assert page.evaluate(f"{hidden}.map(e => e.outerHTML.slice(0, 80))") == []
    wide = "[...document.querySelectorAll('table')].map(e => [Math.ceil(e.getBoundingClientRect().right), e.className])"
    assert page.evaluate(f"{wide}.filter(([right]) => right > 718)") == []


def _luminance(color: str) -> float:
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(page: Any, reports: dict[str, Report], scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(reports["contrast_weight"].path.as_uri())
    paper = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.05) == (scheme == "dark")
    look = "(selector, key) => [...new Set([...document.querySelectorAll(selector)].map(e => getComputedStyle(e)[key]))]"
    texts = page.evaluate(f"([s, k]) => ({look})(s, k)", ["svg text", "fill"]) + page.evaluate(
        f"([s, k]) => ({look})(s, k)", ["p, td, th, a, button, .right, .wrong", "color"]
    )
    assert len(texts) >= 5
    for color in texts:
        lighter, darker = sorted((_luminance(color), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, color


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_sorted_by_mouse_and_by_keyboard(page: Any, reports: dict[str, Report], width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(reports["contrast_weight"].path.as_uri())
    table = page.locator("#results table.sortable").first
    values = "table => [...table.tBodies[0].rows].map(row => row.cells[4].dataset.sort).map(Number)"
    before = table.evaluate(values)
    head = table.locator("thead th").nth(4)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and table.evaluate(values) == sorted(before) != before
    page.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending" and table.evaluate(values) == sorted(before)[::-1]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert table.locator("thead th").nth(5).get_attribute("aria-sort") == "ascending"
    table.locator("thead th button").nth(6).click()
    assert table.locator("tbody tr").last.locator("td").last.text_content() is not None
    assert "baseline" in table.locator("tbody tr").last.text_content()  # its difference is unknown: last, both ways
    table.locator("thead th button").nth(6).click()
    assert "baseline" in table.locator("tbody tr").last.text_content()


def test_without_scripts_and_on_paper_everything_is_there(browser: Any, reports: dict[str, Report]) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 800, "height": 900})
    page = context.new_page()
    page.goto(reports["contrast_weight"].path.as_uri())
    assert page.locator("#results tbody tr").count() >= 4
    assert len(page.pdf(format="A4")) > 50_000
    context.close()


def test_many_classes_fold_and_stay_small(tmp_path: Path, make_run: Any, page: Any, write_predictions: Any) -> None:
    folder = make_run()
    names = tuple(f"Class{index:03}" for index in range(400))
    write_predictions(folder, names, np.repeat(np.arange(400), 10))
    report = write_report([folder])
    assert report.path.stat().st_size < MAX_BYTES
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(report.path.as_uri())
    assert page.locator("summary", has_text="each of the 400 classes").count() == 1
    assert page.evaluate(ESCAPES)[-1]["height"] > 200
    image, output = (page.locator(f"figure[data-cells] {name}") for name in ("image", "output"))
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    page.mouse.move(box["x"] + (200.5 / 400) * box["width"], box["y"] + (200.5 / 400) * box["height"])
    assert re.fullmatch(r"Class(\d+), recognized: \d+ of 10", output.text_content())
    page.mouse.move(box["x"] + box["width"] + 9, box["y"])
    assert output.text_content().startswith("Point at a cell")
    assert page.locator("summary", has_text="The 30 most frequent errors").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
