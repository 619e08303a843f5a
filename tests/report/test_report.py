"""The report's page, opened in a real browser, and what it says of whole and partial runs."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis import run_description
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.report.parts.html import REPORT_SCRIPT, hash_script
from pipeline.report.report import Report, write_report
from pipeline.run_folder.contents import flatten
from tests.run_folders import leave_undrawn
from tests.study_folders import line, write_population, write_study

MAX_BYTES = 5_000_000

PAGES = ("single", "several", "contrast_weight", "frame_rate", "rates")


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


def test_the_differences_tell_their_protocol(reports: dict[str, Report]) -> None:
    told = "is corrected for itself. Protocol: 10 clips x 3 crops, mean of probabilities, last checkpoint, test split."
    for ending in (".html", ".md"):
        assert told in reports["several"].path.with_suffix(ending).read_text(encoding="utf-8")


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


@pytest.fixture(scope="module")
def shared(reports: dict[str, Report], manifest: Manifest, write_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an ablation, a search and a run; its pictures are empty."""
    folder = tmp_path_factory.mktemp("shared")
    given = [reports[name].path.parent for name in ("contrast_weight", "rates")]
    with pytest.MonkeyPatch.context() as patched:
        leave_undrawn(patched)
        return write_report([*given, write_run(folder, manifest, method="supervised")], folder / "all.html").path


def test_the_tables_of_a_search_have_its_knobs_and_what_is_missing(reports: dict[str, Report], shared: Path) -> None:
    """Alone, and beside an ablation."""
    for page in (reports["rates"].path, shared):
        rows = list(csv.DictReader(page.with_suffix(".csv").read_text(encoding="utf-8").splitlines()))
        trials = [row for row in rows if row["setting"].startswith("trial ")]
        assert len(trials) == 12 * 3 and all(row["primary.optimizer.lr"] and row["method.labels.source"] for row in trials)
        markdown, latex = (page.with_suffix(end).read_text(encoding="utf-8") for end in (".md", ".tex"))
        assert "| 29 | running |" in markdown and "| confidence_threshold |" in markdown and r"29 & running &" in latex
        assert "- rates: Trial 13 failed: worker 0: the loss is not finite" in markdown
        assert "% missing: rates: Trial 13 failed" in latex
        phrase = "10 clips x 3 crops, mean of probabilities, last checkpoint, validation split"
        assert all(row["protocol"] == phrase for row in trials)
        told = "A pruned trial was stopped early by its scheduler. Protocol: " + phrase
        assert told in markdown and told in page.read_text(encoding="utf-8")
    assert "contrast.weight=1" in markdown and "| trial-00003 | trial 3 |" in markdown


def test_several_studies_and_runs_share_a_page(shared: Path) -> None:
    html = shared.read_text(encoding="utf-8")
    assert "Search: rates" in html and "contrast.weight=1" in html and len(html.encode()) < MAX_BYTES
    assert "<th scope=row" in html and "over supervised" in html


@pytest.mark.usefixtures("undrawn")
def test_a_study_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    report = write_report([write_study(tmp_path / "ablation", [line(0, "one", "waiting")], question="Which?")])
    assert "1 of 1 trials: 1 not begun." in (html := report.path.read_text(encoding="utf-8")) and "Which?" in html
    report = write_report([write_study(tmp_path / "search", [], kind="search", trials=3, question="Which?")])
    assert "3 of 3 trials: 3 not begun." in (html := report.path.read_text(encoding="utf-8")) and "Which?" in html


@pytest.mark.usefixtures("undrawn")
def test_cells_that_have_names_keep_them_and_a_baseline_without_a_run_is_replaced(make_run: Any) -> None:
    cells = {"none": 0, "all": 2}
    folders = [make_run(overrides=(f"views.strong.ops={ops}", f"run.name={name}_seed-0")) for name, ops in cells.items()]
    lines = [line(0, folders[0].name, **{"views.strong.ops": 0}), line(1, folders[1].name)]
    report = write_report([write_study(folders[0].parent, lines, baseline={"views.strong.ops": 7})])
    html = report.path.read_text(encoding="utf-8")
    assert '<th scope=row data-sort="none">none</th>' in html and "over all" in html


@pytest.mark.usefixtures("undrawn")
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


def test_the_runs_name_commands_and_changed_keys_are_shown(reports: dict[str, Report]) -> None:
    html = reports["single"].path.read_text(encoding="utf-8")
    assert "<title>actnetformer-0: actnetformer" in html
    assert "<pre>python -m jobs.train run.name=actnetformer-0 method.name=actnetformer run.seed=0</pre>" in html
    changed = re.findall("<tr>" + 3 * "<td><code>([^<]+)</code></td>" + "</tr>", html)
    assert ("train.steps", "1000", "20000") in changed
    assert all(key != "train.precision" for key, _, _ in changed)


@pytest.mark.parametrize("page", ["single", "several"])
def test_the_terminal_names_the_protocol_once(reports: dict[str, Report], page: str) -> None:
    assert reports[page].table.count("Protocol: 10 clips x 3 crops") == 1


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("lost", ["config.yaml", "facts.json", "metrics.jsonl", "predictions.parquet", "quarantine.parquet"])
def test_a_run_without_one_file_still_has_a_report(make_run: Any, lost: str) -> None:
    folder = make_run()
    (folder / lost).unlink()
    html = write_report([folder]).path.read_text(encoding="utf-8")
    missing = re.findall(r'<div class="missing">.*?</div>', html, flags=re.DOTALL)
    assert bool(missing) == (lost != "quarantine.parquet")
    assert not missing or lost in missing[0]
    assert ("Quarantined videos" in html) == (lost != "quarantine.parquet")


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_only_just_began_says_so(make_run: Any) -> None:
    folder = make_run()
    for name in ("predictions.parquet", "evaluation.json", "quarantine.parquet"):
        (folder / name).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:30]) + '\n{"step": 310, "lo')
    report = write_report([folder])
    html = report.path.read_text(encoding="utf-8")
    assert "the run was not evaluated" in html and "python -m jobs.evaluate writes it" in html
    assert "300 of 1,000" in report.table
    missing = html[html.index("What is missing") :]
    assert missing.index("step 300 of 1,000. If nothing runs it now, the command that started it continues") < missing.index(
        "evaluation.json"
    )


def test_scores_without_a_summary_are_summarized(make_run: Any) -> None:
    folder = make_run()
    with_summary = write_report([folder], wanted=("md",)).table
    (folder / "evaluation.json").unlink()
    assert write_report([folder], wanted=("md",)).table == with_summary


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, make_run: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run()], tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([make_run(seed=1)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs"]
