"""Metrics against slow references that count one video at a time."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.evaluation.evaluation_summary import summarize
from pipeline.evaluation.metrics import (
    average_students,
    compute_class_accuracies,
    compute_confusion_matrix,
    compute_mean_and_sd,
    compute_top1,
    find_predicted_classes,
)

Case = tuple[NDArray[np.int64], NDArray[np.int64], int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labels and predictions, both with some -1, over K classes."""
    num_classes = draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.integers(-1, num_classes - 1), st.integers(-1, num_classes - 1)), max_size=30))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1], num_classes


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True), dtype=np.float64)


@given(cases())
def test_top1_counts_labeled_videos_only(case: Case) -> None:
    labels, predicted, _ = case
    judged = [int(a) == int(b) for a, b in zip(labels, predicted, strict=True) if a >= 0]
    assert compute_top1(labels, predicted) == (pytest.approx(sum(judged) / len(judged)) if judged else None)


@given(cases())
def test_per_class_is_the_share_of_each_true_class(case: Case) -> None:
    labels, predicted, num_classes = case
    for index, share in enumerate(compute_class_accuracies(labels, predicted, num_classes)):
        judged = [bool(b == index) for a, b in zip(labels, predicted, strict=True) if a == index]
        assert share == (pytest.approx(sum(judged) / len(judged)) if judged else None)


@given(cases())
def test_confusion_has_true_classes_in_rows(case: Case) -> None:
    labels, predicted, num_classes = case
    slow = [[0] * num_classes for _ in range(num_classes)]
    for a, b in zip(labels, predicted, strict=True):
        if a >= 0 and b >= 0:
            slow[a][b] += 1
    assert compute_confusion_matrix(labels, predicted, num_classes).tolist() == slow


@given(cases())
def test_the_diagonal_of_the_confusion_gives_top1(case: Case) -> None:
    labels, predicted, num_classes = case
    found = compute_top1(labels, predicted)
    if found is not None:
        assert np.trace(compute_confusion_matrix(labels, predicted, num_classes)) / (labels >= 0).sum() == pytest.approx(found)


def test_predictions_are_the_highest_score_and_lowest_index_among_equals() -> None:
    assert find_predicted_classes(np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2]])).tolist() == [1, 0]


def test_a_diverged_student_is_wrong_everywhere() -> None:
    scores = np.array([[np.nan, np.nan], [0.2, 0.8], [np.inf, 0.0]])
    assert find_predicted_classes(scores).tolist() == [-1, 1, -1]
    assert compute_top1(np.array([0, 1, 0]), find_predicted_classes(scores)) == pytest.approx(1 / 3)


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(2, 5))
def test_mean_of_students_is_a_distribution_between_them(seed: int, videos: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = (softmax(generator.normal(size=(videos, num_classes)) * 3) for _ in range(2))
    mean = average_students(first, second)
    assert np.allclose(mean.sum(axis=1), 1)
    assert np.allclose(mean, average_students(second, first))
    assert (mean >= np.minimum(first, second) - 1e-12).all() and (mean <= np.maximum(first, second) + 1e-12).all()


def test_the_mean_lets_the_surer_student_decide() -> None:
    primary, auxiliary = np.array([[0.45, 0.55]]), np.array([[0.9, 0.1]])
    assert find_predicted_classes(average_students(primary, auxiliary)).tolist() == [0]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=10))
def test_mean_and_sd_are_those_of_the_statistics_module(values: list[float]) -> None:
    mean, sd, n = compute_mean_and_sd(values)
    assert n == len(values)
    assert mean == pytest.approx(statistics.mean(values), abs=1e-9)
    assert sd == (pytest.approx(statistics.stdev(values), abs=1e-6) if n > 1 else None)


def test_the_mean_of_nothing_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="nothing"):
        compute_mean_and_sd([])


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_summary_holds_what_evaluation_json_promises(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes = ["run", "jump", "sit"]
    labels = generator.integers(-1, 2, size=12)  # never "sit": a class without a video
    scores = {name: softmax(generator.normal(size=(12, 3))) for name in ("primary", "auxiliary")}
    summary = json.loads(json.dumps(summarize(labels, scores, classes)))
    assert list(summary) == ["videos", "classes", "primary", "auxiliary", "mean"]
    assert summary["videos"] == (labels >= 0).sum() and summary["classes"] == classes
    both = (scores["primary"] + scores["auxiliary"]) / 2
    for name, values in {**scores, "mean": both}.items():
        hits = [int(values[i].argmax() == labels[i]) for i in range(12) if labels[i] >= 0]
        assert summary[name]["top1"] == (pytest.approx(sum(hits) / len(hits)) if hits else None)
        assert summary[name]["per_class"]["sit"] is None


def test_one_student_alone_has_no_mean() -> None:
    summary = summarize(np.array([1]), {"primary": np.array([[0.2, 0.8]])}, ["a", "b"])
    assert summary["primary"]["top1"] == 1.0 and "mean" not in summary


def test_scores_of_other_classes_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="primary"):
        summarize(np.array([0]), {"primary": np.array([[0.2, 0.8]])}, ["a", "b", "c"])
