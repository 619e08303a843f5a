from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.clips.source import VideoSource, open_source, read_quarantine_records
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import DrawOptions, draw_labels, write_labels
from pipeline.manifest.schema import read_manifest
from pipeline.methods import find_first_unlabeled_step
from pipeline.stream.batches import lay_out_blocks, to_batch
from pipeline.stream.in_process import load_batches


@pytest.fixture(scope="module")
def config_words(tiny):  # type: ignore[no-untyped-def]
    return tiny / "tiny.yaml"


def source(path: object, *words: str) -> VideoSource:
    config = load_config(path, words)  # type: ignore[arg-type]
    return open_source(config, find_first_unlabeled_step(config))[0]


def test_rows_are_the_same_bytes_alone_and_together(config_words: object) -> None:
    one = source(config_words)
    together = one.decode_rows(np.arange(3, 7))
    for place, row in enumerate(range(3, 7)):
        alone = one.decode_rows(np.array([row]))
        assert all(np.array_equal(alone[name][0], together[name][place]) for name in together.keys() - {"seconds"})
    assert (together["seconds"] > 0).all()
    assert together["primary"].shape == (4, 3, 4, 40, 40, 3)
    assert together["primary"].dtype == np.uint8
    assert np.array_equal(together["video"], one.plan.choose_videos(np.arange(3, 7)))
    assert read_quarantine_records(together) == ()


def test_labels_are_the_manifests(config_words: object) -> None:
    one = source(config_words)
    columns = one.decode_rows(np.arange(4))
    names = np.array(one.manifest.classes)[columns["label"]]
    for video, name in zip(columns["video"].ravel(), names.ravel(), strict=True):
        assert f"/{name}/" in one.manifest.locate(int(video))


LATE = (
    ("method.supervised_steps=2",),
    ("method.supervised_steps=1", "method.contrast.start=1", "method.pseudo_label.start=3"),
    ("method.pseudo_label.start=2", "method.contrast.weight=0"),
)
"""Unlabeled videos count from step 2 on."""


@pytest.mark.parametrize("words", LATE)
def test_steps_without_unlabeled_losses_decode_labeled_videos_only(config_words: object, words: tuple[str, ...]) -> None:
    plain, late = source(config_words), source(config_words, *words)
    before, after = late.decode_rows(np.arange(4)), late.decode_rows(np.arange(4, 6))
    assert (before["video"][:, 1:] == -1).all()
    assert (before["label"][:, 1:] == -1).all()
    assert not before["primary"][:, 1:].any()
    assert np.array_equal(before["primary"][:, 0], plain.decode_rows(np.arange(4))["primary"][:, 0])
    assert np.array_equal(after["auxiliary"], plain.decode_rows(np.arange(4, 6))["auxiliary"])


def test_unlabeled_only_and_supervised_only_are_the_same_stream(config_words: object) -> None:
    plain, config = source(config_words), load_config(config_words, ["train.steps=2"])  # type: ignore[arg-type]
    unlabeled = replace(plain, plan=replace(plain.plan, labeled=np.array([], dtype=np.int64)))
    supervised = replace(plain, plan=replace(plain.plan, unlabeled_per_labeled=0))
    whole = list(load_batches(plain, config, 0))
    for batch, one, other in zip(whole, load_batches(unlabeled, config, 0), load_batches(supervised, config, 0), strict=True):
        assert (one.videos[:, 0] == -1).all() and not one.primary[:, 0].any()
        assert one.primary[:, 1:].equal(batch.primary[:, 1:]) and one.labels[:, 1:].equal(batch.labels[:, 1:])
        assert other.primary.equal(batch.primary[:, :1]) and other.videos.equal(batch.videos[:, :1])


def test_local_batches_walk_the_plan_from_any_step(config_words: object) -> None:
    config = load_config(config_words, ["train.steps=6"])  # type: ignore[arg-type]
    one = open_source(config)[0]
    batches = list(load_batches(one, config, 2))
    assert [batch.rows.tolist() for batch in batches] == [[4, 5], [6, 7], [8, 9], [10, 11]]
    whole = to_batch(one.decode_rows(np.array([4, 5])))
    assert batches[0].primary.equal(whole.primary)


def test_blocks_hold_the_clips_that_were_asked_for(config_words: object) -> None:
    one = source(config_words)  # a step is 2 rows of 3 videos

    def steps(workers: int, clips: int) -> int:
        return lay_out_blocks(one, load_config(config_words, [f"data.clips_per_block={clips}"]), 0, workers).steps_per_block  # type: ignore[arg-type]

    assert steps(workers=1, clips=12) == 2
    assert steps(workers=2, clips=12) == 4
    assert steps(workers=2, clips=1) == 1


def test_held_out_videos_are_validated_on_and_never_trained(tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    write_labels(draw_labels(manifest, "4/class", 0, DrawOptions(hold_out=0.25)), manifest, tmp_path / "l.parquet")
    whole, part = source(tiny / "tiny.yaml"), source(tiny / "tiny.yaml", f"data.labels={tmp_path / 'l.parquet'}")
    held = part.find_evaluation_rows("validation")
    assert len(held) == 4 and set(held) | set(part.plan.labeled) == set(whole.plan.labeled)
    assert set(part.plan.unlabeled) == set(whole.plan.unlabeled)
    np.testing.assert_array_equal(part.find_evaluation_rows("test"), manifest.find_usable_rows("test"))
    with pytest.raises(UserError, match=r"no usable video to evaluate in split 'validation'.*--hold-out"):
        whole.find_evaluation_rows("validation")
