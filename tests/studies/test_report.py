"""The report's page, opened in a real browser, and what it says of whole and partial runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.studies.report import Report, write_report

MAX_BYTES = 5_000_000
WIDTHS = (1280, 390)
ESCAPES = """() => [...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect(), around = svg.closest('figure').getBoundingClientRect();
  const inside = box.left >= around.left - 1 && box.right <= around.right + 1 && box.bottom <= around.bottom + 1;
  const cut = [...svg.querySelectorAll('text')].filter(text => {
    const t = text.getBoundingClientRect();
    return t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 || t.bottom > box.bottom + 1;
  }).map(text => text.textContent);
  return {name: svg.getAttribute('aria-label'), width: box.width, height: box.height, inside, cut};
})"""
CLIPPED = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && !e.closest('.scroll') &&
  !e.closest('details:not([open])') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + '.' + e.className)"""


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


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, write_run: Any) -> dict[str, Report]:
    """A single run's report, and that of two methods with two seeds each."""
    parent = tmp_path_factory.mktemp("reports")
    several = [
        write_run(parent / "several", manifest, method=method, seed=seed, margin=margin)
        for method, margin in (("supervised", 0.5), ("actnetformer", 2.0))
        for seed in (0, 1)
    ]
    return {"single": write_report([write_run(parent / "single", manifest)]), "several": write_report(several)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["single", "several"])
def test_the_page_fits_its_window_and_stays_at_home(
    browser: Any, reports: dict[str, Report], name: str, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = reports[name].path.as_uri()
    page.goto(address)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(CLIPPED) == []
    plots = page.evaluate(ESCAPES)
    assert len(plots) == 12 + (2 if name == "several" else 1)
    for plot in plots:
        assert plot["inside"] and plot["width"] > 100 and plot["height"] > 100 and plot["cut"] == [], plot
    broken = "[...document.images].filter(image => !image.complete || image.naturalWidth < 32).length"
    assert page.locator("img").count() >= 24 and page.evaluate(broken) == 0
    page.close()


def _luminance(color: str) -> float:
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(browser: Any, reports: dict[str, Report], scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(reports["several"].path.as_uri())
    paper = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.05) == (scheme == "dark")
    look = "(selector, key) => [...new Set([...document.querySelectorAll(selector)].map(e => getComputedStyle(e)[key]))]"
    texts = page.evaluate(f"([s, k]) => ({look})(s, k)", ["svg text", "fill"]) + page.evaluate(
        f"([s, k]) => ({look})(s, k)", ["p, td, th, .right, .wrong", "color"]
    )
    assert len(texts) >= 5
    for color in texts:
        lighter, darker = sorted((_luminance(color), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, color
    page.close()


def test_the_page_is_one_small_file_without_scripts_links_or_stand_in_colors(reports: dict[str, Report]) -> None:
    html = reports["several"].path.read_text(encoding="utf-8")
    assert len(html.encode()) < MAX_BYTES
    assert "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert not re.findall(r"#0[0-3]0[0-3]0[0-3]\b|#0000[0-9a-f]{2}\b", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, make_run: Any) -> None:
    folder = make_run()
    pages = [write_report([folder], tmp_path / name).path.read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_the_page_states_the_gain_over_the_baseline(reports: dict[str, Report]) -> None:
    html = reports["several"].path.read_text(encoding="utf-8")
    assert "What does actnetformer gain over training on the labeled videos alone" in html
    assert re.search(r'<p class="answer">\+\d+\.\d\s±\s\d+\.\d percentage points of top-1 \(2 seeds, ahead in 2 of 2\)', html)
    assert "With 16 test videos, one video more or less is 6.2 points." in html


def test_what_users_wrote_is_escaped(reports: dict[str, Report]) -> None:
    html = reports["single"].path.read_text(encoding="utf-8")
    assert "videos/&lt;broken&gt;.mp4" in html and "<broken>" not in html


def test_commands_and_changed_keys_are_shown(reports: dict[str, Report]) -> None:
    html = reports["single"].path.read_text(encoding="utf-8")
    assert "<pre>python -m jobs.train run.name=actnetformer-0 method.name=actnetformer run.seed=0</pre>" in html
    changed = re.findall("<tr>" + 3 * "<td><code>([^<]+)</code></td>" + "</tr>", html)
    assert ("train.steps", "1000", "20000") in changed
    assert all(key != "train.precision" for key, _, _ in changed)


@pytest.mark.parametrize("lost", ["config.yaml", "facts.json", "metrics.jsonl", "predictions.parquet", "quarantine.parquet"])
def test_a_run_without_one_file_still_has_a_report(make_run: Any, lost: str) -> None:
    folder = make_run()
    (folder / lost).unlink()
    html = write_report([folder]).path.read_text(encoding="utf-8")
    missing = re.findall(r'<div class="missing">.*?</div>', html, flags=re.DOTALL)
    assert bool(missing) == (lost != "quarantine.parquet")
    assert not missing or lost in missing[0]
    assert ("Quarantined videos" in html) == (lost != "quarantine.parquet")


def test_a_run_that_only_just_began_says_so(make_run: Any) -> None:
    folder = make_run()
    for name in ("predictions.parquet", "evaluation.json", "quarantine.parquet"):
        (folder / name).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:30]) + '\n{"step": 310, "lo')
    report = write_report([folder])
    html = report.path.read_text(encoding="utf-8")
    assert "the run was not evaluated" in html and "python -m jobs.evaluate writes it" in html
    assert "300 of 1,000" in report.table and "step 300 of 1,000" in html


def test_scores_without_a_summary_are_summarized(make_run: Any) -> None:
    folder = make_run()
    with_summary = write_report([folder]).table
    (folder / "evaluation.json").unlink()
    assert write_report([folder]).table == with_summary


def test_lost_videos_are_told_not_fatal(make_run: Any, tmp_path: Path, manifest: Manifest) -> None:
    moved = tmp_path / "moved.parquet"
    shutil.copy(manifest.path, moved)
    folder = make_run(overrides=(f"data.manifest={moved}", f"data.root={tmp_path / 'elsewhere'}"))
    html = write_report([folder]).path.read_text(encoding="utf-8")
    assert html.count("No frames: the video file is gone.") == 8 and "<img" not in html
    moved.unlink()
    html = write_report([folder]).path.read_text(encoding="utf-8")
    assert html.count("No frames: the manifest cannot be read: manifest not found") == 8


def test_many_classes_fold_and_stay_small(tmp_path: Path, make_run: Any, browser: Any, write_predictions: Any) -> None:
    folder = make_run()
    names = tuple(f"Class{index:03}" for index in range(400))
    write_predictions(folder, names, np.repeat(np.arange(400), 10))
    report = write_report([folder])
    assert report.path.stat().st_size < MAX_BYTES
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(report.path.as_uri())
    assert page.locator("summary", has_text="each of the 400 classes").count() == 1
    assert page.evaluate(ESCAPES)[-1]["height"] > 200
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.close()


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, make_run: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run()], tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([make_run(seed=1)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs"]
