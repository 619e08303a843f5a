"""Results of other data on the report's page: everything that a run's own results have, and no claim that there are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.records.run_reader import read_run_record
from pipeline.manifest.schema import Manifest
from pipeline.report.report import write_report
from pipeline.report.small_copy import copy_runs
from tests.run_folders import evaluate_on_other_data


def read_section(html: str, name: str) -> str:
    """The text of a section of the page, without tags."""
    (section,) = re.findall(rf'<section id="{name}">.*?</section>', html, flags=re.DOTALL)
    return " ".join(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", section, flags=re.DOTALL).split())


@pytest.mark.usefixtures("undrawn")
def test_results_of_other_data_alone_have_figures_classes_and_confusions(make_run: Any, manifest: Manifest) -> None:
    folder: Path = make_run()
    own = json.loads((folder / "evaluation.json").read_text())
    of_own_data = read_section(write_report([folder]).path.read_text(encoding="utf-8"), "classes")
    evaluate_on_other_data(folder, manifest)
    report = write_report([folder])
    html = report.path.read_text(encoding="utf-8")
    assert "not evaluated." not in html and "No run was evaluated" not in html
    data = "/".join(Path(manifest.path).parts[-2:])
    mean, primary, auxiliary = (f"{100 * own[name]['top1']:.1f} %" for name in ("mean", "primary", "auxiliary"))
    answer = (
        f"Top-1 on 16 videos in {data}: {mean} by the mean of both students; "
        f"{primary} by the primary, {auxiliary} by the auxiliary alone."
    )
    assert answer in report.table and answer in html.replace("\N{NO-BREAK SPACE}", " ")
    figures = read_section(html, "other-data0")
    assert f"Evaluation of actnetformer-0 on {data} Protocol: 10 clips x 3 crops, mean of probabilities, last" in figures
    assert f"{own['mean']['ece'] * 100:.1f}" in figures and "Hardest videos" in figures
    assert read_section(html, "other-data0-classes") == of_own_data.replace("Classes", f"Classes in {data}", 1)
    assert "data:image/jpeg" in html and 'href="data:,"' in html
    missing = "evaluation.json: not evaluated on its own data yet; python -m jobs.evaluate writes it."
    assert read_run_record(folder).missing == (missing,)
    small = write_report(copy_runs([folder], folder.parent / "small"), folder.parent / "small.html").path
    assert 'id="other-data0-classes"' in small.read_text(encoding="utf-8")


def test_results_of_other_data_stand_beside_a_runs_own(make_run: Any, manifest: Manifest) -> None:
    folder: Path = make_run()
    evaluate_on_other_data(folder, manifest, keep_own=True)
    html = write_report([folder]).path.read_text(encoding="utf-8")
    for name in ("evaluation", "classes", "other-data0", "other-data0-classes"):
        assert read_section(html, name)
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))  # a second drawing of the same name would take the first one's parts


@pytest.mark.usefixtures("undrawn")
def test_scores_that_are_gone_are_said(make_run: Any, manifest: Manifest) -> None:
    folder: Path = make_run()
    evaluate_on_other_data(folder, manifest, keep_own=True)
    (folder / f"predictions_on_{manifest.fingerprint}.parquet").unlink()
    html = write_report([folder]).path.read_text(encoding="utf-8")
    assert f"predictions_on_{manifest.fingerprint}.parquet: without it there are no classes" in html
    assert "Evaluated on other data" in html and 'id="other-data0"' not in html
