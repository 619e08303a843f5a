from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_config
from pipeline.evaluation.protocol import (
    average_views,
    collect_protocol,
    combine_views,
    describe_protocol,
    is_of_finished_run,
    list_views,
)


@given(
    videos=st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=20),
    clips=st.integers(1, 10),
    crops=st.sampled_from([1, 3]),
)
def test_every_view_of_every_video_once(videos: list[int], clips: int, crops: int) -> None:
    rows, moments, windows = list_views(np.array(videos), clips, crops)
    views = set(zip(rows.tolist(), moments.tolist(), windows.tolist(), strict=True))
    assert len(rows) == len(views) == len(videos) * clips * crops
    assert set(rows.tolist()) == set(videos)
    assert moments.min() > 0 and moments.max() < 1
    assert set(windows.tolist()) == ({0.5} if crops == 1 else {0.0, 0.5, 1.0})


def test_moments_are_evenly_spaced() -> None:
    _, moments, _ = list_views(np.array([7]), 4, 1)
    assert moments.tolist() == [0.125, 0.375, 0.625, 0.875]


def test_scores_are_averaged_over_usable_views_whatever_their_order() -> None:
    videos = np.array([5, 3, 5, 3, 9])
    scores = np.array([[1.0, 0.0], [0.2, 0.8], [0.0, 1.0], [9.0, 9.0], [7.0, 7.0]])
    kept, mean = average_views(videos, scores, np.array([True, True, True, False, False]))
    assert kept.tolist() == [3, 5]
    assert mean.tolist() == [[0.2, 0.8], [0.5, 0.5]]


def test_the_mean_of_logits_lets_a_sure_view_count_more() -> None:
    """Of log-probabilities, as a scorer gives them, it is the softmax of the mean logits."""
    logits = np.array([[4.0, 0.0, 1.0], [0.0, 1.0, 0.5]])
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    videos, usable = np.array([7, 7]), np.array([True, True])
    _, by_logits = combine_views(videos, logs, usable, "logits")
    _, by_probabilities = combine_views(videos, np.exp(logs), usable, "probabilities")
    expected = np.exp(logits.mean(axis=0)) / np.exp(logits.mean(axis=0)).sum()
    np.testing.assert_allclose(by_logits[0], expected)
    np.testing.assert_allclose(by_probabilities[0], np.exp(logs).mean(axis=0))
    assert by_logits[0, 0] > by_probabilities[0, 0]


def test_a_protocol_is_described_as_far_as_the_file_tells() -> None:
    config = load_config(overrides=["evaluation.crops=1", "evaluation.average=logits", "auxiliary.clip.sampling=segments"])
    evaluation = {"protocol": collect_protocol(config), "step": 20, "primary": {"top1": 0.5}}
    assert describe_protocol(evaluation) == (
        "10 clips x 1 crop, mean of logits, last checkpoint (step 20), 8 fps and whole video, 224 px, test split"
    )
    earlier = {"clips": 1, "crops": 3, "split": "validation", "step": 5, "primary": {"top1": 0.5}}
    assert describe_protocol(earlier) == "1 clip x 3 crops, mean of probabilities, last checkpoint (step 5), validation split"
    assert describe_protocol({"primary": {"top1": 0.5}}) == ""


def test_an_evaluation_of_another_protocol_or_of_an_earlier_step_is_not_the_runs_last() -> None:
    config = load_config(overrides=["train.steps=9", "train.warmup_steps=0"])
    earlier = {"clips": 10, "crops": 3, "split": "test", "step": 9}
    assert is_of_finished_run(earlier, config)
    assert not is_of_finished_run(earlier | {"step": 8}, config)
    logits = load_config(overrides=["evaluation.average=logits", "train.steps=9", "train.warmup_steps=0"])
    assert not is_of_finished_run(earlier, logits)
    best = load_config(overrides=["evaluation.checkpoint=best", "train.keep_best=1", "train.steps=9", "train.warmup_steps=0"])
    assert is_of_finished_run({"protocol": collect_protocol(best), "step": 4, "trained_steps": 9}, best)
    assert not is_of_finished_run({"protocol": collect_protocol(best), "step": 4, "trained_steps": 9}, config)
