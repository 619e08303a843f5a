"""Which picture fits what was varied, and what searches say of their knobs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis.comparison import Group, group_runs
from pipeline.analysis.importance import compute_importances, compute_ranks
from pipeline.analysis.records.study_reader import read_report_input, read_study_record
from pipeline.analysis.records.study_record import Objective, StudyRecord, TrialRecord
from pipeline.analysis.response import choose_response
from pipeline.report.parts.sentences import describe_best_trial
from pipeline.report.plots.response_plots import draw_response_curve, draw_response_map, draw_response_rows
from pipeline.report.plots.search_plots import (
    draw_history,
    draw_importances,
    draw_parallel_coordinates,
    draw_schedule,
    find_pareto_front,
    find_scheduled_keys,
    sort_worst_first,
)
from tests.study_folders import search_trials, write_population, write_study


def groups_of(make_run: Any, *settings: tuple[str, ...], method: str = "actnetformer") -> list[Group]:
    folders = [make_run(method=method, overrides=(*words, f"run.name=r{n}")) for n, words in enumerate(settings)]
    return group_runs(read_report_input(folders).runs)


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_one_number_is_a_curve(make_run: Any) -> None:
    groups = groups_of(make_run, *((f"method.confidence_threshold={tau}",) for tau in (0.5, 0.8, 0.95)))
    found = choose_response(groups)
    assert found is not None and (found.kind, found.keys) == ("curve", ("method.confidence_threshold",))
    assert found.list_values(0) == [0.5, 0.8, 0.95]
    svg = draw_response_curve(found, groups, "mean", groups[1], "x")
    assert {"0.5", "0.8", "0.95", "method.confidence_threshold", "top-1, %"} <= set(texts(svg))


def test_two_crossed_numbers_are_a_map_and_a_line_of_pairs_is_not(make_run: Any) -> None:
    words = [(f"primary.clip.fps={a}", f"auxiliary.clip.fps={b}") for a in (4, 8) for b in (16, 32)]
    groups = groups_of(make_run, *words)
    found = choose_response(groups)
    assert found is not None and found.kind == "map" and (found.list_values(0), found.list_values(1)) == ([4, 8], [16, 32])
    svg = draw_response_map(found, groups, "primary", "x")
    top1 = [f"{group.runs[0].get_top1('primary'):.1f}" for group in groups]
    assert all(texts(svg).count(text) >= top1.count(text) for text in top1) and texts(svg).count("n = 1") == 4
    pairs = choose_response([groups[0], groups[3]])
    assert pairs is not None and pairs.kind == "rows"


def test_words_and_methods_are_rows(make_run: Any) -> None:
    groups = groups_of(make_run, ("method.labels.source=self",), ("method.labels.source=mean",))
    found = choose_response(groups)
    assert found is not None and found.kind == "rows"
    svg = draw_response_rows(groups, [], "mean", "x")
    assert {"labels.source=self", "labels.source=mean"} <= set(texts(svg))
    assert choose_response(groups[:1]) is None


def test_the_supervised_baseline_is_no_point_of_the_curve(make_run: Any) -> None:
    weights = [make_run(overrides=(f"method.contrast.weight={w}", f"run.name=w{w}")) for w in (1, 2)]
    groups = group_runs(read_report_input([make_run(method="supervised"), *weights]).runs)
    found = choose_response(groups)
    assert found is not None and found.kind == "curve" and set(found.coordinates) == {1, 2}


# ------------------------------------------------------------------------------------------------------------ searches


@pytest.fixture
def search(tmp_path: Path) -> StudyRecord:
    return read_study_record(write_study(tmp_path / "s", search_trials(60), kind="search"))


def test_of_equal_trials_the_one_that_the_page_names_stands_out(search: StudyRecord) -> None:
    values = [0.5, 0.7, 0.7, 0.6]
    trials = [replace(trial, number=n, state="complete", values={search.objectives[0].name: value})
              for n, (trial, value) in enumerate(zip(search.trials, values, strict=False))]  # fmt: skip
    tied = replace(search, trials=tuple(trials))
    assert [trial.number for trial in sort_worst_first(tied)] == [0, 3, 2, 1]
    assert f"number {sort_worst_first(tied)[-1].number}," in describe_best_trial(tied)


def test_importance_finds_the_knob_that_matters_with_its_best_inside(search: StudyRecord) -> None:
    found = compute_importances(search)
    assert found[0].key == "primary.optimizer.lr"
    assert found[0].share > 0.8 > found[0].chance
    assert all(one.share < one.chance for one in found[1:])  # the value does not depend on them


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_ranks_are_those_of_the_order_with_ties_shared(values: list[float]) -> None:
    found = compute_ranks(values)
    assert found.sum() == pytest.approx(len(values) * (len(values) - 1) / 2)
    for one, other in zip(np.argsort(values, kind="stable")[:-1], np.argsort(values, kind="stable")[1:], strict=True):
        assert found[one] <= found[other] and (found[one] == found[other]) == (values[one] == values[other])


def test_chance_is_rarely_called_important() -> None:
    """At 5 %: of 100 searches in which nothing matters; standard error 2.2 %."""
    generator, called = np.random.default_rng(0), 0
    for _ in range(100):
        drawn = generator.random((12, 2)).tolist()
        trials = tuple(TrialRecord(n, "complete", {"a": a}, {"mean": value}, 1.0, None) for n, (a, value) in enumerate(drawn))
        (one,) = compute_importances(StudyRecord(Path("x"), "x", "search", trials=trials))
        called += one.share > one.chance
    assert called <= 10


def test_too_few_trials_have_no_importance(search: StudyRecord) -> None:
    assert compute_importances(replace(search, trials=search.trials[:4])) == []


def test_pictures_of_a_search_name_their_knobs(search: StudyRecord) -> None:
    words = texts(draw_parallel_coordinates(search, "p"))
    assert {"lr", "confidence_threshold", "source", "mean top-1, %", "mean", "other", "self"} <= set(words)
    assert "trial" in texts(draw_history(search, "h"))
    assert "lr" in texts(draw_importances(compute_importances(search), "i"))


def test_the_front_is_what_nothing_beats() -> None:
    points = [(0.9, 100.0), (0.8, 50.0), (0.7, 60.0), (0.5, 10.0), (0.9, 120.0)]
    trials = [TrialRecord(n, "complete", {}, {"mean": a, "seconds": b}, b, None) for n, (a, b) in enumerate(points)]
    assert [trial.number for trial in find_pareto_front(trials, (Objective("mean"), Objective("seconds", False)))] == [3, 1, 0]


def test_a_population_shows_its_schedules(tmp_path: Path) -> None:
    study = read_study_record(write_population(tmp_path / "pbt"))
    assert find_scheduled_keys(study) == ["primary.optimizer.lr"]
    assert {"optimizer step", "200", "0.1"} <= set(texts(draw_schedule(study, "primary.optimizer.lr", "s")))
