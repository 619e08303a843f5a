"""Which runs belong to one curve of accuracy over the number of labels, and how the report shows the curves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.accuracy_by_labels import LabelCurve, build_label_curves
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.report.report import write_report

MakeLabeled = Callable[..., Path]


@pytest.fixture
def make_labeled(make_run: Any) -> MakeLabeled:
    """``make_labeled(name, spec, count, method, seed, *words)`` -> folder of an evaluated run with such labels."""

    def make(name: str, spec: str, count: int, method: str = "actnetformer", seed: int = 0, *words: str) -> Path:
        folder: Path = make_run(method=method, seed=seed, margin=count / 50, overrides=(f"run.name={name}", *words))
        facts = json.loads((folder / "facts.json").read_text())
        facts["labels"] |= {"spec": spec, "count": count, "fingerprint": f"{count:016x}"}
        facts["fingerprints"]["labels"] = f"{count:016x}"
        (folder / "facts.json").write_text(json.dumps(facts))
        return folder

    return make


def curves_of(*folders: Path) -> dict[str, LabelCurve]:
    return {curve.name: curve for curve in build_label_curves(read_report_input(folders).runs)}


def test_each_method_has_a_curve_over_all_its_seeds(make_labeled: MakeLabeled) -> None:
    folders = [
        make_labeled(f"{method}-{per_class}-{seed}", f"{per_class}/class", 4 * per_class, method, seed)
        for per_class in (4, 1)
        for method in ("actnetformer", "supervised")
        for seed in (0, 1)
    ]
    curves = curves_of(*folders)
    assert set(curves) == {"actnetformer", "supervised"}
    assert curves["supervised"].counts == [4, 16]
    runs = {run.name: run for run in read_report_input(folders).runs}
    assert curves["actnetformer"].top1["primary"][16] == {
        seed: runs[f"actnetformer-4-{seed}"].get_top1("primary") for seed in (0, 1)
    }


def test_labels_that_people_added_begin_with_those_they_were_added_to(make_labeled: MakeLabeled) -> None:
    drawn = [make_labeled(f"drawn-{n}", f"{n}/class", 4 * n) for n in (1, 2, 4)]
    added = [make_labeled("one", "1/class + a.csv 1a", 9), make_labeled("two", "1/class + a.csv 1a + b.csv 2b", 14)]
    curves = curves_of(*drawn, *added)
    assert {name: curve.counts for name, curve in curves.items()} == {
        "actnetformer, no answers": [4, 8, 16], "actnetformer, a.csv 1a + b.csv 2b": [4, 9, 14],
    }  # fmt: skip
    assert {name: curve.counts for name, curve in curves_of(drawn[0], *added).items()} == {"actnetformer": [4, 9, 14]}


def test_two_ways_to_choose_what_people_label_are_two_curves(make_labeled: MakeLabeled) -> None:
    first = make_labeled("first", "1/class", 4)
    seconds = [make_labeled(f"by-{name}", f"1/class + {name}.csv 1a", 9) for name in ("mixed", "random")]
    curves = curves_of(first, *seconds)
    assert {name: curve.counts for name, curve in curves.items()} == {
        "actnetformer, mixed.csv 1a": [4, 9], "actnetformer, random.csv 1a": [4, 9],
    }  # fmt: skip


def test_other_settings_and_single_counts_make_no_curve(make_labeled: MakeLabeled) -> None:
    weak = [make_labeled(f"weak-{n}", f"{n}/class", 4 * n, "actnetformer", 0, "method.contrast.weight=0.5") for n in (1, 2)]
    one = make_labeled("one", "1/class", 4)
    assert {name: curve.counts for name, curve in curves_of(*weak, one).items()} == {"contrast.weight=0.5": [4, 8]}
    assert curves_of(weak[0], one) == {}


def test_the_page_shows_them(make_labeled: MakeLabeled, tmp_path: Path) -> None:
    folders = [make_labeled(f"{m}-{n}", f"{n}/class", 4 * n, m) for n in (1, 4) for m in ("cmpl", "supervised")]
    page = write_report(folders, tmp_path / "page.html", ("html",)).path.read_text(encoding="utf-8")
    section = page[page.index('<section id="label-counts">') :].partition("</section>")[0]
    assert section.count("<svg") == 3 and {"cmpl", "supervised", "labels"} <= set(
        re.findall(r"<text[^>]*>([^<]+)</text>", section)
    )
    assert sorted(re.findall(r"<span>([^<]+)</span>", section)) == ["cmpl", "supervised"]  # the legend
    page = write_report(folders[:2], tmp_path / "other.html", ("html",)).path.read_text(encoding="utf-8")
    assert "label-counts" not in page


def test_supervised_runs_alone_are_compared_with_the_first(make_labeled: MakeLabeled, tmp_path: Path) -> None:
    folders = [make_labeled(f"supervised-{n}", f"{n}/class", 4 * n, "supervised") for n in (1, 4)]
    report = write_report(folders, tmp_path / "page.html", ("html",))
    assert "share no seed" not in report.table and "p (Holm)" in report.table
