"""The report's page, opened in a real browser, and what it says of whole and partial runs."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.analysis import run_description
from pipeline.analysis.run_reader import flatten, read_run_record
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.report.html import REPORT_SCRIPT, hash_script
from pipeline.report.pages.label_report import write_label_report
from pipeline.report.report import Report, write_report
from tests.study_folders import line, write_population, write_rates, write_scores, write_search, write_study, write_weights

MAX_BYTES = 5_000_000
WIDTHS = (1280, 390)
PAGES = ("single", "several", "contrast_weight", "frame_rate", "rates")
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
    return {
        "single": write_report([write_run(parent / "single", manifest)]),
        "several": write_report(several),
        **{study.name: write_report([study]) for study in (
            write_weights(parent, manifest, write_run), write_rates(parent, manifest, write_run),
            write_search(parent, manifest, write_run))},
    }  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
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
    assert check_layout(page) == PLOTS[name]
    broken = "[...document.images].filter(image => !image.complete || image.naturalWidth < 32).length"
    assert page.locator("img").count() >= 24 and page.evaluate(broken) == 0
    page.close()


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
    """Pages of a run that saved scores, of these scores alone, and of a population."""
    parent = tmp_path_factory.mktemp("further")
    folder = write_run(parent, manifest)
    generator = torch.Generator().manual_seed(0)
    scores = {name: (3 * torch.randn(60, 4, generator=generator)).softmax(dim=1) for name in ("primary", "auxiliary")}
    write_scores(folder, torch.randint(-1, 4, (60,), generator=generator), scores, steps=30)
    return {
        "labels": write_report([folder]).path,
        "label_quality": write_label_report([folder]).files[-1],
        "population": write_report([write_population(parent / "pbt")]).path,
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["labels", "label_quality", "population"])
def test_pages_of_labels_and_populations_fit_their_window_too(
    browser: Any, further: dict[str, Path], name: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(further[name].as_uri())
    assert check_layout(page) >= {"labels": 20, "label_quality": 8, "population": 1}[name]
    assert complaints == []
    page.close()


@pytest.mark.parametrize("name", [*PAGES, "labels"])
def test_print_shows_what_is_folded_and_no_table_is_cut(
    browser: Any, reports: dict[str, Report], further: dict[str, Path], name: str
) -> None:
    """A4 between Chromium's margins is 718 px wide."""
    page = browser.new_page(viewport={"width": 718, "height": 1000})
    page.emulate_media(media="print")
    page.goto((further[name] if name in further else reports[name].path).as_uri())
    folded = "[...document.querySelectorAll('details:not([open]) > :not(summary)')]"
    assert page.evaluate(f"{folded}.length") > 0
    hidden = f"{folded}.filter(e => !e.checkVisibility({{contentVisibilityAuto: true}}) || !e.getBoundingClientRect().height)"
    assert page.evaluate(f"{hidden}.map(e => e.outerHTML.slice(0, 80))") == []
    wide = "[...document.querySelectorAll('table')].map(e => [Math.ceil(e.getBoundingClientRect().right), e.className])"
    assert page.evaluate(f"{wide}.filter(([right]) => right > 718)") == []
    page.close()


def _luminance(color: str) -> float:
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(browser: Any, reports: dict[str, Report], scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
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
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_one_small_file_with_one_known_script_and_links_to_run_folders_only(
    reports: dict[str, Report], name: str
) -> None:
    html, folder = reports[name].path.read_text(encoding="utf-8"), reports[name].path.parent
    assert len(html.encode()) < MAX_BYTES
    assert re.findall(r"<script.*?</script>", html, flags=re.DOTALL) == [f"<script>{REPORT_SCRIPT}</script>"]
    assert f"script-src '{hash_script(REPORT_SCRIPT)}'" in html and "default-src 'none'" in html
    links = set(re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', html))
    assert links and all((folder / link / "config.yaml").is_file() for link in links)
    assert not re.findall(r"#0[0-3]0[0-3]0[0-3]\b|#0000[0-9a-f]{2}\b", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_sorted_by_mouse_and_by_keyboard(browser: Any, reports: dict[str, Report], width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
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
    page.close()


def test_without_scripts_and_on_paper_everything_is_there(browser: Any, reports: dict[str, Report]) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 800, "height": 900})
    page = context.new_page()
    page.goto(reports["contrast_weight"].path.as_uri())
    assert page.locator("#results tbody tr").count() >= 4
    assert len(page.pdf(format="A4")) > 50_000
    context.close()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, make_run: Any) -> None:
    folder = make_run()
    pages = [write_report([folder], tmp_path / name).path.read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_the_page_states_the_gain_over_the_baseline(reports: dict[str, Report]) -> None:
    html = reports["several"].path.read_text(encoding="utf-8")
    assert "What does actnetformer gain over training on the labeled videos alone" in html
    start = r'<p class="answer">\+\d+\.\d\s±\s\d+\.\d percentage points of top-1 \(2 seeds, ahead in 2 of 2\)(.*?)</p>'
    found = re.search(start, html)
    assert found and "95\xa0%" in found[1] and "Not distinguishable at n\xa0=\xa02, p\xa0= 0." in found[1]
    assert "With 16 test videos, one video more or less is 6.25 points." in html


def test_an_ablation_answers_its_question_and_says_what_is_missing(reports: dict[str, Report]) -> None:
    html = reports["contrast_weight"].path.read_text(encoding="utf-8").replace("\xa0", " ")
    assert '<p class="question">How much contrast helps?</p>' in html
    answer = re.findall(r'<p class="answer">(.*?)</p>', html)[0]
    assert answer.startswith("Better than contrast.weight=0: contrast.weight=1 by +")
    assert "The other 2 settings are not distinguishable from it at n = 2 to 3." in answer
    assert "1 of 12 trials: 1 not begun. python -m jobs.ablate contrast_weight --config c.yaml --seeds 3 continues it." in html
    kept = '<td>no_labels/primary_to_auxiliary</td><td class="number">10 to 500</td>'
    assert kept in html and "labels of the primary for the auxiliary: 0.0% of labels are kept" in html
    assert "Top-1 over method.contrast.weight" in html and "<b>" not in answer
    assert re.search(r"hours of training on [\d,]+ clips", html)


def test_a_map_of_two_knobs_and_no_claim_from_one_seed(reports: dict[str, Report]) -> None:
    html = reports["frame_rate"].path.read_text(encoding="utf-8").replace("\xa0", " ")
    assert "Top-1 over primary.clip.fps and auxiliary.clip.fps" in html
    answer = re.findall(r'<p class="answer">(.*?)</p>', html)[0]
    assert answer.startswith("One seed of each of the 5 settings: none can be told from primary.clip.fps=8 auxiliary.clip")


def test_a_search_shows_its_trials_and_doubts_its_best(reports: dict[str, Report]) -> None:
    html = reports["rates"].path.read_text(encoding="utf-8").replace("\xa0", " ")
    answer = re.findall(r'<p class="answer">(.*?)</p>', html)[0]
    assert answer.startswith("Best of 30 trials (18 complete, 1 failed, 10 pruned, 1 running): number ")
    assert "train it again with other seeds before it is believed" in answer
    assert "Trial 13 failed: worker 0: the loss is not finite" in html
    for title in ("Trials, from knobs to value", "Value by trial", "Importance of each knob alone", "Two objectives"):
        assert f"<figcaption>{title}</figcaption>" in html
    assert html.count('<td data-sort="pruned">') == 10
    assert "Judged on validation videos, not on test ones: all runs." in html
    assert "<h2>Sample validation clips</h2>" in html and "test videos" not in html and "test clips" not in html


def test_the_tables_of_a_search_have_its_knobs_and_what_is_missing(reports: dict[str, Report], tmp_path: Path) -> None:
    """Alone, and beside an ablation."""
    both = write_report([reports[name].path.parent for name in ("contrast_weight", "rates")], tmp_path / "both.html")
    for page in (reports["rates"].path, both.path):
        rows = list(csv.DictReader(page.with_suffix(".csv").read_text(encoding="utf-8").splitlines()))
        trials = [row for row in rows if row["setting"].startswith("trial ")]
        assert len(trials) == 12 * 3 and all(row["primary.optimizer.lr"] and row["method.labels.source"] for row in trials)
        markdown, latex = (page.with_suffix(end).read_text(encoding="utf-8") for end in (".md", ".tex"))
        assert "| 29 | running |" in markdown and "| confidence_threshold |" in markdown and r"29 & running &" in latex
        assert "- rates: Trial 13 failed: worker 0: the loss is not finite" in markdown
        assert "% missing: rates: Trial 13 failed" in latex
    assert "contrast.weight=1" in markdown and "| trial-00003 | trial 3 |" in markdown


def test_several_studies_and_runs_share_a_page(reports: dict[str, Report], make_run: Any, tmp_path: Path) -> None:
    given = [reports[name].path.parent for name in ("contrast_weight", "rates")] + [make_run(method="supervised")]
    report = write_report(given, tmp_path / "all.html")
    html = report.path.read_text(encoding="utf-8")
    assert "Search: rates" in html and "contrast.weight=1" in html and len(html.encode()) < MAX_BYTES
    assert "<th scope=row" in html and "over supervised" in html


def test_a_study_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    report = write_report([write_study(tmp_path / "ablation", [line(0, "one", "waiting")], question="Which?")])
    assert "1 of 1 trials: 1 not begun." in (html := report.path.read_text(encoding="utf-8")) and "Which?" in html
    report = write_report([write_study(tmp_path / "search", [], kind="search", trials=3, question="Which?")])
    assert "3 of 3 trials: 3 not begun." in (html := report.path.read_text(encoding="utf-8")) and "Which?" in html


def test_cells_that_have_names_keep_them_and_a_baseline_without_a_run_is_replaced(make_run: Any) -> None:
    cells = {"none": 0, "all": 2}
    folders = [make_run(overrides=(f"views.strong.ops={ops}", f"run.name={name}_seed-0")) for name, ops in cells.items()]
    lines = [line(0, folders[0].name, **{"views.strong.ops": 0}), line(1, folders[1].name)]
    report = write_report([write_study(folders[0].parent, lines, baseline={"views.strong.ops": 7})])
    html = report.path.read_text(encoding="utf-8")
    assert '<th scope=row data-sort="none">none</th>' in html and "over all" in html


def test_the_baseline_is_the_cell_of_just_these_keys(make_run: Any) -> None:
    """As in ``contrast``: ``off`` has the same level, which it does not change."""
    level, weight = {"method.contrast.level": "video"}, {"method.contrast.weight": 0}
    cells = {"off": weight, "video": level, "frame": {"method.contrast.level": "frame"}}
    lines = []
    for number, (name, values) in enumerate(cells.items()):
        folder = make_run(overrides=(*(f"{key}={value}" for key, value in values.items()), f"run.name={name}_seed-0"))
        lines.append(line(number, folder.name, **values, **{"run.seed": 0}))
    html = write_report([write_study(folder.parent, lines, baseline=level)]).path.read_text(encoding="utf-8")
    assert "over video," in html and "over off" not in html


def test_a_population_has_a_page(tmp_path: Path) -> None:
    html = write_report([write_population(tmp_path / "pbt")]).path.read_text(encoding="utf-8")
    assert "<figcaption>lr</figcaption>" in html and "each line is a member of the population" in html


def test_only_the_wanted_files_are_written(make_run: Any) -> None:
    folder = make_run()
    report = write_report([folder], wanted=("md",))
    assert report.files == (folder / "report.md",) and not (folder / "report.html").exists()
    with pytest.raises(UserError, match=r"end it in \.html"):
        write_report([folder], folder / "table.csv")


def test_what_users_wrote_is_escaped(reports: dict[str, Report]) -> None:
    html = reports["single"].path.read_text(encoding="utf-8")
    assert "videos/&lt;broken&gt;.mp4" in html and "<broken>" not in html


def test_commands_and_changed_keys_are_shown(reports: dict[str, Report]) -> None:
    html = reports["single"].path.read_text(encoding="utf-8")
    assert "<pre>python -m jobs.train run.name=actnetformer-0 method.name=actnetformer run.seed=0</pre>" in html
    changed = re.findall("<tr>" + 3 * "<td><code>([^<]+)</code></td>" + "</tr>", html)
    assert ("train.steps", "1000", "20000") in changed
    assert all(key != "train.precision" for key, _, _ in changed)


def test_the_command_of_a_studys_run_makes_this_very_run_in_a_shell(make_run: Any, tmp_path: Path) -> None:
    """Recorded is the command of the process that made it: the study's, or that of a worker of Ray's."""
    words = ("views.strong.time.warp=[2, 4, 8]", "primary.network.arch=timesformer", "primary.optimizer.lr=0.00001")
    off = "method.labels.distribution_alignment='off'"
    folder = make_run(overrides=(*words, off, "train.milestones=[]", f"data.root={tmp_path}/a place"))
    facts = json.loads((folder / "facts.json").read_text())
    study = write_study(folder.parent, [line(0, folder.name)], command="python -m jobs.ablate 'my study.yaml'")
    for recorded in ("python -m jobs.ablate x --config c.yaml", "/x/default_worker.py --node-ip-address=1", None):
        (folder / "facts.json").write_text(json.dumps({**facts, "command": recorded}))
        made = shlex.split(run_description.build_command(run := read_run_record(folder)))
        assert made[:3] == ["python", "-m", "jobs.train"]
        assert flatten(load_config(overrides=made[3:]).model_dump(mode="json")) == run.config
    html = write_report([study]).path.read_text(encoding="utf-8")
    assert "views.strong.time.warp=[2, 4, 8]&#39;" in html
    assert "<pre>python -m jobs.ablate &#39;my study.yaml&#39;</pre>" in html
    (folder / "facts.json").write_text(json.dumps({**facts, "command": None, "lineage": [{"from": 0}, {"from": 100}]}))
    assert run_description.build_command(read_run_record(folder)) == ""


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
    """Eight samples, and eight videos that are hardest or most confused."""
    moved = tmp_path / "moved.parquet"
    shutil.copy(manifest.path, moved)
    folder = make_run(overrides=(f"data.manifest={moved}", f"data.root={tmp_path / 'elsewhere'}"))
    html = write_report([folder]).path.read_text(encoding="utf-8")
    assert html.count("No frames: the video file is gone.") == 8 + 8 and "<img" not in html
    moved.unlink()
    html = write_report([folder]).path.read_text(encoding="utf-8")
    assert html.count("No frames: the manifest cannot be read: manifest not found") == 8 + 8


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
    image, output = (page.locator(f"figure[data-cells] {name}") for name in ("image", "output"))
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    page.mouse.move(box["x"] + (200.5 / 400) * box["width"], box["y"] + (200.5 / 400) * box["height"])
    assert re.fullmatch(r"Class(\d+), recognized: \d+ of 10", output.text_content())
    page.mouse.move(box["x"] + box["width"] + 9, box["y"])
    assert output.text_content().startswith("Point at a cell")
    assert page.locator("summary", has_text="The 30 most frequent errors").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.close()


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, make_run: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run()], tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([make_run(seed=1)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs"]
